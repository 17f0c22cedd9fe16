"""The next word as a model predicts it, with the components behind the prediction."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from highrank.functional import mixture_log_prob
from highrank.heads import MixtureOfContexts
from highrank.models import LanguageModel, without_dropout

__all__ = ["Explanation", "Prediction", "joined", "predict_next"]

BLOCK_BYTES = 48 * 2**20


class Explanation(NamedTuple):
    """How a prediction met the word that came, for positions (*) and K components.

    surprisal (*): -log P(word), in nats, of the tempered mixture; posterior (*, K): P(component | context, word) and
    component_log_prob (*, K): log P(word | component, context), both without temperature.
    """

    surprisal: Tensor
    posterior: Tensor
    component_log_prob: Tensor


class Prediction(NamedTuple):
    """What comes next at positions (*), from K components over V words; n words of each are listed, likeliest first.

    The temperature acts on the mixture alone: ``words``, ``log_prob``, ``entropy`` and ``full``. Weights, words and
    posteriors of the components are those of the model as it is.

    A head with one softmax (``Softmax``, ``MixtureOfContexts``) has one component, of weight 1. A mixture of contexts
    also has ``context_weights``: how its contexts are averaged before that softmax. They weigh vectors, not
    distributions, so no context has words or a posterior of its own.
    """

    words: Tensor  # (*, n) word numbers of the mixture
    log_prob: Tensor  # (*, n), in nats
    word_posterior: Tensor  # (*, n, K), P(component | context, this word), without temperature
    entropy: Tensor  # (*), of the mixture, in nats
    prior: Tensor  # (*, K), P(component | context)
    component_words: Tensor  # (*, K, n) word numbers of each component
    component_log_prob: Tensor  # (*, K, n), in nats
    context_weights: Tensor | None  # (*, C) of a mixture of C contexts, else None
    met: Explanation | None  # if the words that came were given
    full: Tensor | None  # (*, V) log-probabilities of the mixture in nats, if asked for


@torch.no_grad()
def predict_next(
    model: LanguageModel,
    hidden: Tensor,
    *,
    target: Tensor | None = None,
    top: int = 10,
    temperature: float = 1.0,
    keep_full: bool = False,
) -> Prediction:
    """The next-word distribution after hidden states (*, H) of ``model.backbone``, and what it is made of.

    With ``target`` (*), int64, also how each word that came was met. ``top`` words are listed, or V if there are fewer;
    ``keep_full`` keeps all V log-probabilities. ``temperature`` divides the mixture's log-probabilities, which are then
    normalised again. Dropout is off.

    Memory: blocks of positions; a handful of temporaries of 48 MiB, or of one position's K x V numbers if these are
    more, beside what is returned. Raises ValueError naming the argument, what was expected and what came.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    if top < 1:
        raise ValueError(f"top: expected at least 1 word, got {top}")
    if target is not None and target.shape != hidden.shape[:-1]:
        raise ValueError(f"target: expected shape {tuple(hidden.shape[:-1])} like hidden, got {tuple(target.shape)}")
    hidden_NH = hidden.reshape(-1, hidden.shape[-1])
    target_N = None if target is None else target.reshape(-1)
    with without_dropout(model):
        components = model.head.components(hidden_NH[:1]).prior_logits.shape[-1]
        block = max(1, BLOCK_BYTES // (components * model.vocab_size * hidden.element_size()))
        parts = [
            _predict_block(
                model,
                hidden_NH[start : start + block],
                None if target_N is None else target_N[start : start + block],
                min(top, model.vocab_size),
                temperature,
                keep_full,
            )
            for start in range(0, max(len(hidden_NH), 1), block)
        ]
    return joined(parts, hidden.shape[:-1], hidden.device)


def _predict_block(
    model: LanguageModel, hidden_bH: Tensor, target_b: Tensor | None, top: int, temperature: float, keep_full: bool
) -> Prediction:
    head = model.head
    context_bKD, prior_logits_bK = head.components(hidden_bH)
    K = prior_logits_bK.shape[-1]
    # Each component is a mixture of one.
    one = prior_logits_bK.new_zeros((*prior_logits_bK.shape, 1))
    component_bKV = mixture_log_prob(context_bKD.unsqueeze(-2), one, head.weight, bias=head.bias, options=head.options)
    log_prior_bK = torch.log_softmax(prior_logits_bK.to(component_bKV.dtype), dim=-1)
    mixture_bV = torch.logsumexp(component_bKV + log_prior_bK.unsqueeze(-1), dim=1)
    met = None
    tempered_bV = mixture_bV if temperature == 1 else torch.log_softmax(mixture_bV / temperature, dim=-1)
    if target_b is not None:
        word_b1 = target_b.unsqueeze(1)
        target_bK = component_bKV.gather(2, word_b1.unsqueeze(1).expand(-1, K, -1)).squeeze(2)
        met = Explanation(
            surprisal=-tempered_bV.gather(1, word_b1).squeeze(1),
            posterior=torch.softmax(log_prior_bK + target_bK, dim=-1),
            component_log_prob=target_bK,
        )
    log_prob_bn, words_bn = tempered_bV.topk(top)
    joint_bKn = log_prior_bK.unsqueeze(-1) + component_bKV.gather(2, words_bn.unsqueeze(1).expand(-1, K, -1))
    component_log_prob_bKn, component_words_bKn = component_bKV.topk(top)
    return Prediction(
        words=words_bn,
        log_prob=log_prob_bn,
        word_posterior=torch.softmax(joint_bKn, dim=1).mT,
        entropy=torch.special.entr(tempered_bV.exp()).sum(-1),
        prior=log_prior_bK.exp(),
        component_words=component_words_bKn,
        component_log_prob=component_log_prob_bKn,
        context_weights=torch.softmax(head.prior(hidden_bH), dim=-1) if isinstance(head, MixtureOfContexts) else None,
        met=met,
        full=tempered_bV if keep_full else None,
    )


def joined(parts: Sequence[Prediction], shape: Sequence[int], device: torch.device | str) -> Prediction:
    """The parts one after the other, as one prediction of positions ``shape`` on ``device``."""

    def join(column: tuple[Any, ...]) -> Any:
        if column[0] is None:
            return None
        if isinstance(column[0], Explanation):
            return Explanation(*map(join, zip(*column, strict=True)))
        whole = torch.cat([tensor.to(device) for tensor in column])
        return whole.view((*shape, *whole.shape[1:]))

    return Prediction(*map(join, zip(*parts, strict=True)))
