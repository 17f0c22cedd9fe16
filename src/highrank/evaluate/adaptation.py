"""A model that learns from the text that it is scored on, by the RMS rule.

Segment by segment the text is scored, and only then every weight moves:

    w += lamb * decay * (w0 - w) - lr * gradient / (RMS + epsilon),   decay = min(RMS / sum_tensors(mean RMS), 1 / lamb)

with w0 the trained weights and RMS the root of the squared gradients over the training text, which says how much a
weight matters. Source: Krause et al. 2017 (arXiv 1709.07432), in the scaling of the MoS code: the sum over tensors is
not divided by their number, and RMS is the root of a sum, unless ``mean_square``.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from highrank.models import LanguageModel, State, detached, seed_dropouts, without_dropout

__all__ = ["Adaptation", "DynamicSettings", "GradientStatistics"]


class DynamicSettings(NamedTuple):
    """lamb: decay towards the trained weights; lr: learning rate; epsilon: floor of the divisor; bptt: time steps a
    segment; mean_square: root of the mean instead of the sum of squared gradients; weight_dropout_seed: leave
    DropConnect on, as the 2018 port did by mistake, with masks of this seed (only to measure that)."""

    lamb: float = 0.02
    lr: float = 0.002
    epsilon: float = 0.001
    bptt: int = 5
    mean_square: bool = False
    weight_dropout_seed: int | None = None


class GradientStatistics(NamedTuple):
    """For every parameter the sum of its squared gradients, over ``segments`` segments of the training text."""

    squares: Mapping[str, Tensor]
    segments: int

    def rms(self, *, mean_square: bool) -> dict[str, Tensor]:
        divisor = self.segments if mean_square else 1
        return {name: (square / divisor).sqrt() for name, square in self.squares.items()}


class Adaptation:
    """A context manager: inside, ``step`` scores a segment of text and lets ``model`` learn from it; on leaving, the
    trained weights are back.

    ``state`` is the state after the text so far, with which the next segment is scored (batch 1).
    """

    def __init__(self, model: LanguageModel, statistics: GradientStatistics, settings: DynamicSettings) -> None:
        named = dict(model.named_parameters())
        rms = statistics.rms(mean_square=settings.mean_square)
        self.model = model
        self.settings = settings
        self.state: State = model.initial_state(1)
        self._steps = 0
        self._parameters: list[Tensor] = list(named.values())
        self._trained = [parameter.detach().clone() for parameter in self._parameters]
        self._decays, rates = _decays_and_rates([rms[name] for name in named], settings)
        self._embedding = model.backbone.embedding
        rate_of = dict(zip(self._parameters, rates, strict=True))
        self._embedding_rates = rate_of[self._embedding]
        # All that the loss of embedded tokens depends on; the embedding only if it is the output embedding too.
        tied = model.head.weight is self._embedding
        self._learning = [parameter for parameter in self._parameters if tied or parameter is not self._embedding]
        self._learning_rates = [rate_of[parameter] for parameter in self._learning]
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        keep = self.settings.weight_dropout_seed is not None
        self._inside.enter_context(without_dropout(self.model, keep_weight_dropout=keep))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside.close()
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._trained)

    def step(self, tokens: Tensor, target: Tensor) -> Tensor:
        """Mean loss in nats of ``target`` (T, 1) after ``tokens`` (T, 1), by the weights before the step."""
        if self.settings.weight_dropout_seed is not None:
            seed_dropouts(self.model, self.settings.weight_dropout_seed, self._steps, 1)
        self._steps += 1
        device = self._embedding.device
        tokens = tokens.to(device)
        # A leaf of its own, or the look-up's gradient would be a matrix of zeros with a few rows, as large as the
        # embedding, to be added to that of the output embedding.
        embedded = self.model.backbone.embed(tokens).detach().requires_grad_()
        output = self.model.predict(embedded, target.to(device), self.state)
        *gradients, rows_T1D = torch.autograd.grad(output.loss, [*self._learning, embedded])
        self.state = detached(output.state)
        self._move(gradients, tokens.squeeze(1), rows_T1D.squeeze(1))
        return output.loss.detach()

    @torch.no_grad()
    def _move(self, gradients: list[Tensor], tokens_T: Tensor, rows_TD: Tensor) -> None:
        """Both terms at the weights before the move: the gradient is known already, so one may follow the other."""
        torch._foreach_lerp_(self._parameters, self._trained, self._decays)
        torch._foreach_addcmul_(self._learning, self._learning_rates, gradients, value=-1)
        self._embedding.index_add_(0, tokens_T, self._embedding_rates[tokens_T] * rows_TD, alpha=-1)


def _decays_and_rates(rms: list[Tensor], settings: DynamicSettings) -> tuple[list[Tensor], list[Tensor]]:
    """lamb * decay and lr / (RMS + epsilon) of every weight: fixed over the text."""
    scale = torch.stack([tensor.mean() for tensor in rms]).sum()
    limit = 1 / settings.lamb if settings.lamb else float("inf")
    decays = [settings.lamb * (tensor / scale).clamp(max=limit) for tensor in rms]
    rates = [settings.lr / (tensor + settings.epsilon) for tensor in rms]
    return decays, rates
