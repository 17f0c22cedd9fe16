"""The 2017 AWD-LSTM-MoS language model as a textbook would write it.

Every softmax of the mixture is stored, nothing is fused and nothing is shared with the library: tests take this module
as ground truth (float64, ``epsilon=0``), benchmarks as the baseline (``epsilon=1e-8``, the formula of the 2017 code).

Sources: Yang et al. 2018 (arXiv 1711.03953), the mixture; Merity et al. 2017 (arXiv 1708.02182), the AWD-LSTM;
Krause et al. 2017 (arXiv 1709.07432), dynamic evaluation.

T steps, B columns, N = T*B tokens, K softmaxes, D word-embedding width, H last hidden width, V words; losses in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

if TYPE_CHECKING:
    from highrank.runs import Config

Hidden = list[tuple[Tensor, Tensor]]  # (h, c) of every layer, each (1, B, width)
ModelOutput = tuple[Tensor, Tensor, Tensor, Hidden]


def shared_dropout(x: Tensor, shared: int, p: float, training: bool) -> Tensor:
    """Dropout with one mask for all positions of the dimension `shared`, survivors divided by 1 - p.

    shared=0 on (T, B, features) is locked dropout; shared=1 on the embedding (V, D) drops whole words.
    """
    if not training or p == 0:
        return x
    return x * F.dropout(torch.ones_like(x.narrow(shared, 0, 1)), p, training)


class DropConnectLSTM(nn.Module):
    """One LSTM layer whose hidden-to-hidden matrix loses single weights: one mask a call, shared by all steps.

    Parameters are drawn as ``nn.LSTM`` draws them: uniform in +-1/sqrt(hidden).
    """

    def __init__(self, input_size: int, hidden_size: int, wdrop: float) -> None:
        super().__init__()
        self.wdrop = wdrop
        gates, bound = 4 * hidden_size, 1 / math.sqrt(hidden_size)
        matrices = {"weight_ih_l0": (gates, input_size), "weight_hh_l0_raw": (gates, hidden_size)}
        shapes = matrices | {"bias_ih_l0": (gates,), "bias_hh_l0": (gates,)}
        self.module = nn.ParameterDict({n: torch.empty(shape).uniform_(-bound, bound) for n, shape in shapes.items()})

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        w = self.module
        weight_hh = F.dropout(w["weight_hh_l0_raw"], self.wdrop, self.training)
        weights = [w["weight_ih_l0"], weight_hh, w["bias_ih_l0"], w["bias_hh_l0"]]
        # cuDNN has a backward only in its training mode, which for a single layer computes the same.
        output, h, c = torch.lstm(x, state, weights, True, 1, 0.0, torch.is_grad_enabled(), False, False)
        return output, (h, c)


class TextbookModel(nn.Module):
    """AWD-LSTM with a mixture of softmaxes; parameter names are those of the 2017 code.

    ``epsilon`` is added to the probabilities inside the logarithm: 1e-8 is the 2017 formula, 0 the exact one.
    ``nhidlast <= 0`` means ``emsize``; ``dropoutl < 0`` means ``dropouth``.
    """

    def __init__(
        self,
        vocab_size: int,
        emsize: int = 400,
        nhid: int = 1150,
        nhidlast: int = -1,
        nlayers: int = 3,
        n_experts: int = 10,
        dropout: float = 0.4,
        dropouth: float = 0.3,
        dropouti: float = 0.65,
        dropoute: float = 0.1,
        dropoutl: float = -0.2,
        wdrop: float = 0.5,
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        self.emsize, self.n_experts, self.epsilon = emsize, n_experts, epsilon
        self.dropout, self.dropouth, self.dropouti, self.dropoute = dropout, dropouth, dropouti, dropoute
        self.dropoutl = dropoutl if dropoutl >= 0 else dropouth
        self.widths = [emsize] + [nhid] * (nlayers - 1) + [nhidlast if nhidlast > 0 else emsize]
        self.encoder = nn.Embedding(vocab_size, emsize)
        self.rnns = nn.ModuleList(DropConnectLSTM(i, o, wdrop) for i, o in pairwise(self.widths))
        self.prior = nn.Linear(self.widths[-1], n_experts, bias=False)
        self.latent = nn.Sequential(nn.Linear(self.widths[-1], n_experts * emsize), nn.Tanh())
        self.decoder = nn.Linear(emsize, vocab_size)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def init_hidden(self, batch: int) -> Hidden:
        """Zero state of every layer for a number of columns."""
        shapes = [(1, batch, width) for width in self.widths[1:]]
        return [(self.prior.weight.new_zeros(shape), self.prior.weight.new_zeros(shape)) for shape in shapes]

    def forward(self, tokens: Tensor, hidden: Hidden) -> ModelOutput:
        """tokens (T, B) -> log_prob (T*B, V), raw last output (T, B, H), dropped last output (T, B, H), new hidden."""
        embedding = shared_dropout(self.encoder.weight, 1, self.dropoute, self.training)
        raw = shared_dropout(F.embedding(tokens, embedding), 0, self.dropouti, self.training)  # (T, B, D)
        new_hidden: Hidden = []
        for layer, (rnn, state) in enumerate(zip(self.rnns, hidden, strict=True)):
            x = shared_dropout(raw, 0, self.dropouth, self.training) if layer > 0 else raw
            raw, new_state = rnn(x, state)
            new_hidden.append(new_state)
        dropped = shared_dropout(raw, 0, self.dropout, self.training)  # (T, B, H)
        return self.log_prob(dropped), raw, dropped, new_hidden

    def log_prob(self, hidden: Tensor) -> Tensor:
        """The mixture: hidden (T, B, H) -> log-probabilities (T*B, V)."""
        context = shared_dropout(self.latent(hidden), 0, self.dropoutl, self.training)  # (T, B, K*D)
        context = context.reshape(-1, self.n_experts, self.emsize)
        prior_logits = self.prior(hidden).reshape(-1, self.n_experts)
        return mixture_log_prob(context, prior_logits, self.decoder.weight, self.decoder.bias, self.epsilon)


def textbook_model(config: Config, vocab_size: int, *, epsilon: float) -> TextbookModel:
    """The model of a recipe, with weights of its own."""
    sizes, dropout = config.model, config.dropout
    return TextbookModel(
        vocab_size,
        emsize=sizes.embedding_features,
        nhid=sizes.hidden_features,
        nhidlast=sizes.last_hidden_features,
        nlayers=sizes.num_layers,
        n_experts=sizes.num_components,
        dropout=dropout.output,
        dropouth=dropout.hidden,
        dropouti=dropout.input,
        dropoute=dropout.embedding,
        dropoutl=dropout.context,
        wdrop=dropout.weight,
        epsilon=epsilon,
    )


def mixture_log_prob(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float = 1e-8
) -> Tensor:
    """context (N, K, D), prior_logits (N, K), weight (V, D), bias (V) -> (N, V)."""
    logits = F.linear(context, weight, bias)  # (N, K, V)
    prob = (logits.softmax(-1) * prior_logits.softmax(-1).unsqueeze(-1)).sum(1)  # (N, V)
    return torch.log(prob + epsilon)


def detach_hidden(hidden: Hidden) -> Hidden:
    """The same state, cut from its history."""
    return [(h.detach(), c.detach()) for h, c in hidden]


def to_columns(text: Tensor, batch: int) -> Tensor:
    """Cut a text (tokens,) into columns (T, batch) of consecutive tokens; the remainder is dropped."""
    steps = len(text) // batch
    return text[: steps * batch].view(batch, steps).t().contiguous()


def segments(columns: Tensor, bptt: int, shortest: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) of at most bptt steps in order, each (length, B); a tail below `shortest` steps is left out."""
    for start in range(0, len(columns) - shortest, bptt):
        length = min(bptt, len(columns) - 1 - start)
        yield columns[start : start + length], columns[start + 1 : start + 1 + length]


def loss(model_output: ModelOutput, targets: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """(objective, plain mean negative log-likelihood) of targets (T, B) or (T*B,).

    The objective adds alpha * mean(dropped^2) and beta * mean((raw[t+1] - raw[t])^2), 0 for T=1.
    """
    log_prob, raw, dropped, _ = model_output
    nll = F.nll_loss(log_prob, targets.reshape(-1))
    total = nll + alpha * dropped.pow(2).mean()
    if raw.shape[0] > 1:
        total = total + beta * (raw[1:] - raw[:-1]).pow(2).mean()
    return total, nll


class StepOptions(TypedDict):
    lr: float
    seq_len: int  # the length that was drawn, which the last segment may not reach
    bptt: int
    alpha: float
    beta: float
    clip: float


def train_step(
    model: TextbookModel,
    optimizer: Optimizer,
    tokens: Tensor,
    targets: Tensor,
    hidden: Hidden,
    **options: Unpack[StepOptions],
) -> tuple[Tensor, Hidden]:
    """One update from all columns at once: `accumulated_step` with a single group."""
    nll, groups = accumulated_step(model, optimizer, tokens, targets, [hidden], **options)
    return nll, groups[0]


def accumulated_step(
    model: TextbookModel,
    optimizer: Optimizer,
    tokens: Tensor,
    targets: Tensor,
    hidden: list[Hidden],
    **options: Unpack[StepOptions],
) -> tuple[Tensor, list[Hidden]]:
    """One update from tokens and targets (T, B), taken in equal groups of columns, one for each state in `hidden`.

    A group's objective counts by its share of the columns; gradients are summed, clipped once and applied once, with
    the learning rate scaled by seq_len / bptt. The model is put into training mode.
    Returns the mean negative log-likelihood (without the regularisers) and the new state of each group.
    """
    if tokens.shape[1] % len(hidden):
        raise ValueError(f"{tokens.shape[1]} columns do not make {len(hidden)} equal groups")
    for group in optimizer.param_groups:
        group["lr"] = options["lr"] * options["seq_len"] / options["bptt"]
    model.train()
    optimizer.zero_grad()
    parts = zip(tokens.chunk(len(hidden), 1), targets.chunk(len(hidden), 1), hidden, strict=True)
    nlls, new_hidden = [], []
    for part_tokens, part_targets, state in parts:
        output = model(part_tokens, detach_hidden(state))
        total, nll = loss(output, part_targets, options["alpha"], options["beta"])
        torch.autograd.backward(total / len(hidden))  # the share of the columns
        nlls.append(nll.detach())
        new_hidden.append(detach_hidden(output[3]))
    nn.utils.clip_grad_norm_(model.parameters(), options["clip"])
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = options["lr"]
    return torch.stack(nlls).mean(), new_hidden


@contextmanager
def averaged_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside the block the parameters hold the averages that ASGD keeps (``ax``); unchanged where there are none."""
    averages = {p: state["ax"] for p, state in optimizer.state.items() if "ax" in state}
    kept = {p: p.detach().clone() for p in averages}
    for p, average in averages.items():
        p.data.copy_(average)
    try:
        yield
    finally:
        for p, value in kept.items():
            p.data.copy_(value)


def segment_losses(model: TextbookModel, columns: Tensor, bptt: int, shortest: int = 1) -> Iterator[Tensor]:
    """Negative log-likelihood of every token, segment by segment, each (length, B), the state carried but detached.

    The model is put into evaluation mode: every dropout is off, DropConnect included.
    """
    model.eval()
    hidden = model.init_hidden(columns.shape[1])
    for inputs, targets in segments(columns, bptt, shortest):
        log_prob, _, _, hidden = model(inputs, detach_hidden(hidden))
        yield F.nll_loss(log_prob, targets.reshape(-1), reduction="none").view(targets.shape)


@torch.no_grad()
def evaluate(model: TextbookModel, text: Tensor, batch: int = 1, bptt: int = 70) -> float:
    """Mean over every predicted token, all but the first of each column, summed in float64."""
    columns = to_columns(text, batch)
    total = sum(nll.double().sum().item() for nll in segment_losses(model, columns, bptt))
    return total / columns[1:].numel()


@torch.no_grad()
def evaluate_paper(model: TextbookModel, text: Tensor, batch: int = 10, bptt: int = 70) -> float:
    """The 2017 count: length * mean loss of every segment, divided by T although only T-1 steps are predicted."""
    columns = to_columns(text, batch)
    total = sum(len(nll) * nll.mean().item() for nll in segment_losses(model, columns, bptt))
    return total / len(columns)


def dynamic_statistics(
    model: TextbookModel, text: Tensor, batch: int = 100, bptt: int = 5, mean_square: bool = False, *, shortest: int = 2
) -> list[Tensor]:
    """Root of the summed (or mean) squared gradient of every parameter, in the order of ``model.parameters()``.

    One pass over the training text with the weights fixed; each segment gives the gradient of its mean loss over all
    columns. As in the 2017 code a shorter last segment counts like any other, but one of a single step is left out.
    """
    parameters = list(model.parameters())
    squares, count = [torch.zeros_like(p) for p in parameters], 0
    for nll in segment_losses(model, to_columns(text, batch), bptt, shortest):
        for square, gradient in zip(squares, torch.autograd.grad(nll.mean(), parameters), strict=True):
            square.addcmul_(gradient, gradient)
        count += 1
    return [(square / count if mean_square else square).sqrt() for square in squares]


def dynamic_evaluate(
    model: TextbookModel,
    text: Tensor,
    rms: list[Tensor],
    *,
    lamb: float,
    lr: float,
    epsilon: float,
    bptt: int = 5,
    shortest: int = 1,
) -> float:
    """Mean negative log-likelihood of every predicted token under weights that learn from each segment once scored.

    The step of a weight is ``lamb * decay * (w0 - w) - lr * gradient / (rms + epsilon)``, both terms at the old w, with
    decay = rms / (sum over tensors of their mean rms), at most 1 / lamb. The model is left with its adapted weights.
    The 2017 code does not score a tail of a single step: ``shortest=2`` does as it did.
    """
    losses = list(dynamic_losses(model, text, rms, lamb, lr, epsilon, bptt, shortest))
    return torch.cat(losses).double().sum().item() / sum(map(len, losses))


def dynamic_losses(
    model: TextbookModel,
    text: Tensor,
    rms: list[Tensor],
    lamb: float,
    lr: float,
    epsilon: float,
    bptt: int,
    shortest: int,
) -> Iterator[Tensor]:
    """The walk of ``dynamic_evaluate``: the losses (T) of each segment, before the weights move."""
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    global_rms = sum(r.mean().item() for r in rms)
    pull = [(lamb * r / global_rms).clamp(max=1.0) for r in rms]  # lamb * decay
    for nll in segment_losses(model, to_columns(text, 1), bptt, shortest):
        gradients = torch.autograd.grad(nll.mean(), parameters)
        yield nll.detach().squeeze(1)
        with torch.no_grad():
            for w, w0, g, d, r in zip(parameters, start, gradients, pull, rms, strict=True):
                w.add_(d * (w0 - w) - lr * g / (r + epsilon))
