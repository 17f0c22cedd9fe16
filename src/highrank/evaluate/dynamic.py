"""Dynamic evaluation: the model goes on learning from the text it has just been scored on.

One pass over the training text sums the squared gradients of every weight; its root, RMS, says how much a weight
matters. Then, over the text to be scored, segment by segment: score it, and only then move

    w += lamb * decay * (w0 - w) - lr * gradient / (RMS + epsilon),   decay = min(RMS / sum_tensors(mean RMS), 1 / lamb)

Source: Krause et al. 2017 (arXiv 1709.07432), in the scaling of the MoS code: the sum over tensors is not divided by
their number, and RMS is the root of a sum, unless ``mean_square``.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import SHORTEST_TRAINING_COLUMN, Columns, Segment
from highrank.errors import UserError
from highrank.evaluate.perplexity import Evaluation
from highrank.models import LanguageModel, State, detached, seed_dropouts, without_dropout
from highrank.progress import SILENT, Display
from highrank.workers import ALONE, Workers

__all__ = ["DynamicSettings", "GradientStatistics", "dynamic_evaluate", "gradient_statistics"]

SHOW_EVERY = 50


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


def gradient_statistics(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    batch: int = 100,
    bptt: int = 5,
    weight_dropout_seed: int | None = None,
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> GradientStatistics:
    """Squared gradients of the mean loss of each segment of the training text, without dropout, weights fixed.

    The text is walked in ``batch`` columns with the state carried. Of several ``workers`` each carries the state
    through the whole text, and has the gradients of its share of the segments. Source: Krause et al. 2017, section 4.
    """
    columns = Columns(tokens, batch, what="train.txt", shortest=SHORTEST_TRAINING_COLUMN)
    named = dict(model.named_parameters())
    parameters: list[Tensor] = list(named.values())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    state = model.initial_state(batch)
    loss_sum = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    segments, done = 0, 0
    with without_dropout(model, keep_weight_dropout=weight_dropout_seed is not None):
        for segment in columns.segments(bptt):
            if len(segment.tokens) == 1 and bptt > 1:
                break  # the original leaves out a last segment of one prediction
            if weight_dropout_seed is not None:
                seed_dropouts(model, weight_dropout_seed, segments, 0)
            segments += 1
            if workers.owner(segments) != workers.rank:
                with torch.no_grad():
                    state = model.backbone(segment.tokens.to(loss_sum.device), state).state
                continue
            loss, gradients, state = _score(model, parameters, segment, state)
            torch._foreach_addcmul_(squares, gradients, gradients)
            done += segment.target.numel()
            loss_sum += loss.double() * segment.target.numel()
            if display is not SILENT and segments % SHOW_EVERY < workers.count:  # a reading makes a GPU wait
                display.progress(
                    "gradient statistics", done * workers.count, columns.predicted_tokens, loss_sum.item() / done
                )
    workers.add_up(squares)
    return GradientStatistics(dict(zip(named, squares, strict=True)), segments)


def dynamic_evaluate(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    statistics: GradientStatistics,
    settings: DynamicSettings,
    *,
    what: str = "dynamic evaluation",
    display: Display = SILENT,
) -> Evaluation:
    """Mean loss over every predicted token of a text, each scored before the model learns from it. Batch 1.

    The weights of ``model`` are as they were when this returns. Raises UserError if the loss is lost on the way
    (a learning rate too high).
    """
    started = time.perf_counter()
    columns = Columns(tokens, 1, what=what)
    named = dict(model.named_parameters())
    parameters: list[Tensor] = list(named.values())
    trained = [parameter.detach().clone() for parameter in parameters]
    rms = statistics.rms(mean_square=settings.mean_square)
    decays, rates = _decays_and_rates([rms[name] for name in named], settings)
    total = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    state = model.initial_state(1)
    done = 0
    try:
        with without_dropout(model, keep_weight_dropout=settings.weight_dropout_seed is not None):
            for index, segment in enumerate(columns.segments(settings.bptt)):
                if settings.weight_dropout_seed is not None:
                    seed_dropouts(model, settings.weight_dropout_seed, index, 1)
                loss, gradients, state = _score(model, parameters, segment, state)
                total += loss.double() * segment.target.numel()
                done += segment.target.numel()
                _move(parameters, trained, decays, rates, gradients)
                if index % SHOW_EVERY == 0:
                    display.progress(what, done, columns.predicted_tokens, _finite(total, done, settings))
        return Evaluation.of(_finite(total, done, settings), done, started)
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, trained)


def _score(
    model: LanguageModel, parameters: list[Tensor], segment: Segment, state: State
) -> tuple[Tensor, tuple[Tensor, ...], State]:
    """Mean loss of a segment, its gradients, and the state after it."""
    device = parameters[0].device
    output = model(segment.tokens.to(device), segment.target.to(device), state)
    gradients = torch.autograd.grad(output.loss, parameters)
    return output.loss.detach(), gradients, detached(output.state)


def _decays_and_rates(rms: list[Tensor], settings: DynamicSettings) -> tuple[list[Tensor], list[Tensor]]:
    """lamb * decay and lr / (RMS + epsilon) of every weight: fixed over the text."""
    scale = torch.stack([tensor.mean() for tensor in rms]).sum()
    limit = 1 / settings.lamb if settings.lamb else float("inf")
    decays = [settings.lamb * (tensor / scale).clamp(max=limit) for tensor in rms]
    rates = [settings.lr / (tensor + settings.epsilon) for tensor in rms]
    return decays, rates


@torch.no_grad()
def _move(
    parameters: list[Tensor],
    trained: list[Tensor],
    decays: list[Tensor],
    rates: list[Tensor],
    gradients: tuple[Tensor, ...],
) -> None:
    """Both terms at the weights before the move."""
    back = torch._foreach_sub(trained, parameters)
    torch._foreach_addcmul_(parameters, decays, back)
    torch._foreach_addcmul_(parameters, rates, gradients, value=-1)


def _finite(total: Tensor, done: int, settings: DynamicSettings) -> float:
    loss_nats = total.item() / done
    if not np.isfinite(loss_nats):
        raise UserError(
            f"dynamic evaluation: the loss is not a number after {done} tokens; try a lower learning rate "
            f"(--lr {settings.lr / 4:g}) or a larger --epsilon"
        )
    return loss_nats
