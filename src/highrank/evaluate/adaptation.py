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

from highrank.errors import UserError
from highrank.evaluate.moves import RMSMoves
from highrank.models import LanguageModel, State, detached, seed_dropouts, without_dropout
from highrank.models.short_lstm import is_short
from highrank.models.short_segment import ShortSegments

__all__ = ["Adaptation", "DynamicSettings", "GradientStatistics"]

LOST_NATS = 100.0  # a token; an even guess among all words of a vocabulary is below 20


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
        self._total = torch.zeros((), dtype=torch.float64, device=next(iter(named.values())).device)
        self._scored = 0
        decays, rates = _decays_and_rates([rms[name] for name in named], settings)
        self._moves = RMSMoves(list(named.values()), decays, rates)
        self._short = ShortSegments(model)
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        keep = self.settings.weight_dropout_seed is not None
        self._inside.enter_context(without_dropout(self.model, keep_weight_dropout=keep))
        self._moves.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside.close()
        self._moves.end()

    def step(self, tokens: Tensor, target: Tensor) -> Tensor:
        """Mean loss in nats of ``target`` (T, 1) after ``tokens`` (T, 1), by the weights before the step."""
        if self.settings.weight_dropout_seed is not None:
            seed_dropouts(self.model, self.settings.weight_dropout_seed, self._steps, 1)
        self._steps += 1
        embedding = self.model.backbone.embedding
        tokens, target = tokens.to(embedding.device), target.to(embedding.device)
        if is_short(tokens) and self.settings.weight_dropout_seed is None:
            loss, self.state, rows_TD = self._short.run(tokens, target, self.state, self._moves)
        else:
            loss, self.state, rows_TD = self._by_autograd(tokens, target)
        with torch.no_grad():
            self._moves.finish()
            if self.model.head.weight is not embedding:
                self._moves.back(embedding)
            self._moves.rows(embedding, tokens.squeeze(1), rows_TD)
            self._total += loss.double() * target.numel()
        self._scored += target.numel()
        return loss

    def loss_nats(self) -> float:
        """Mean loss over all that was scored. Raises UserError if it is lost on the way (a learning rate too high).

        It waits for the device.
        """
        loss_nats = self._total.item() / self._scored
        if not loss_nats < LOST_NATS:  # not a number, too
            raise UserError(
                f"dynamic evaluation: the loss is lost ({loss_nats:.3g} nats after {self._scored} tokens); "
                f"try a lower dynamic.lr ({self.settings.lr / 4:g}) or a larger dynamic.epsilon "
                "(dynamic-eval: --lr, --epsilon)"
            )
        return loss_nats

    def _by_autograd(self, tokens: Tensor, target: Tensor) -> tuple[Tensor, State, Tensor]:
        """``ShortSegments.run`` of any segment, on any device."""
        # A leaf of its own, or the look-up's gradient would be a matrix of zeros with a few rows, as large as the
        # embedding, to be added to that of the output embedding.
        embedding = self.model.backbone.embedding
        embedded = self.model.backbone.embed(tokens).detach().requires_grad_()
        output = self.model.predict(embedded, target, self.state)
        # All that the loss of embedded tokens depends on; the embedding only if it is the output embedding too.
        tied = self.model.head.weight is embedding
        learning = [parameter for parameter in self.model.parameters() if tied or parameter is not embedding]
        *gradients, rows_T1D = torch.autograd.grad(output.loss, [*learning, embedded])
        self._moves.along(learning, gradients)
        return output.loss.detach(), detached(output.state), rows_T1D.squeeze(1)


def _decays_and_rates(rms: list[Tensor], settings: DynamicSettings) -> tuple[list[Tensor], list[Tensor]]:
    """lamb * decay and lr / (RMS + epsilon) of every weight: fixed over the text."""
    scale = torch.stack([tensor.mean() for tensor in rms]).sum()
    limit = 1 / settings.lamb if settings.lamb else float("inf")
    decays = [settings.lamb * (tensor / scale).clamp(max=limit) for tensor in rms]
    rates = [settings.lr / (tensor + settings.epsilon) for tensor in rms]
    return decays, rates
