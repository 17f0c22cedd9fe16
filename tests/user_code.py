"""What a type checker says of someone's own code. ``make types`` reads it, nothing runs it.

mypy takes an ignore that nothing needs for an error: so each line without one has to pass, and each with one to fail.
"""

import torch
from torch import Tensor, nn

import highrank
from highrank.heads import Head


def passes(embedding: nn.Embedding, hidden: Tensor, target: Tensor) -> Tensor:
    options = highrank.LossOptions(min_posterior=1e-3)
    head = highrank.MixtureOfSoftmaxes(8, 50, num_components=3, options=options)
    head.tie(embedding.weight)
    heads: list[Head] = [head, highrank.MixtureOfContexts(8, 50, num_components=3), highrank.Softmax(8, 50)]
    heads.append(highrank.GrownMixture(nn.Linear(8, 50), num_components=3))
    loss = torch.stack([each(hidden, target, label_smoothing=0.1) for each in heads]).sum()
    log_prob: Tensor = head.log_prob(hidden)
    predicted: Tensor = head.predict(hidden)
    found: highrank.Rank = highrank.rank(log_prob)
    print(found.numerical_rank, predicted.shape, highrank.evaluate.Passage, highrank.load("runs/penn").vocabulary)
    return loss + highrank.mixture_cross_entropy(
        head.weight[:2].expand(5, 2, 8), torch.zeros(5, 2), head.weight, target, reduction="sum"
    )


def fails(context: Tensor, prior_logits: Tensor, weight: Tensor, target: Tensor) -> None:
    highrank.MixtureOfSoftmax(8, 50, num_components=3)  # type: ignore[attr-defined]
    highrank.MixtureOfSoftmaxes(8, 50)  # type: ignore[call-arg]
    highrank.MixtureOfSoftmaxes(8, 50, num_components="3")  # type: ignore[arg-type]
    highrank.LossOptions(min_posterior="small")  # type: ignore[arg-type]
    highrank.mixture_cross_entropy(context, prior_logits, weight, target, reduction=None)  # type: ignore[arg-type]
    highrank.mixture_cross_entropy(context, prior_logits, weight, target, None)  # type: ignore[call-arg]
