"""A softmax temperature at evaluation: the mixture's log-probabilities, not those of each component, divided by it.

Above 1 the distribution gets flatter, below 1 sharper. Source: Melis, Dyer, Blunsom 2018 (arXiv 1707.05589), whose code
(google-deepmind/lamb) tunes it on validation text.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns
from highrank.errors import UserError
from highrank.evaluate.generate import LOWEST_TEMPERATURE
from highrank.evaluate.perplexity import Evaluation, means_over_text
from highrank.heads import Head
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.workers import ALONE, Workers

__all__ = ["TemperatureSearch", "check_temperature", "evaluate_at", "tune_temperature"]

BLOCK_BYTES = 16 * 2**20  # of log-probabilities; there are two such blocks at a time
STEP = 1.05  # from one temperature of the search to the next
STEPS = 4  # on both sides of 1, in the first pass; each of the others goes on by twice as many
MOST_PASSES = 4
DIGITS = 3  # half a thousandth beside the best temperature costs about a millionth of a nat


class TemperatureSearch(NamedTuple):
    """The temperature that was found, and the loss in nats at each that was tried, in their order."""

    temperature: float
    loss_nats: dict[float, float]


def check_temperature(temperature: float) -> None:
    if not LOWEST_TEMPERATURE <= temperature < math.inf:
        raise UserError(f"temperature: expected a number from {LOWEST_TEMPERATURE} on, got {temperature}", exit_code=2)


def evaluate_at(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    temperatures: Sequence[float],
    *,
    batch: int = 1,
    segment: int = 0,
    what: str = "text",
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> list[Evaluation]:
    """The mean loss over a text at each of the ``temperatures``, from one pass over it.

    At temperature t the log-probabilities of the next word are ``log_softmax(model.head.log_prob(hidden) / t)``. The
    text is walked as by ``evaluate``, to whose loss that at 1 is equal within rounding. Beside the model's own pass a
    temperature costs one log-sum-exp over the vocabulary a token.
    Raises UserError for no temperature, or one that is not a number, or below 0.001, where the division overflows.
    """
    if not temperatures:
        raise UserError("temperatures: expected one or more", exit_code=2)
    for temperature in temperatures:
        check_temperature(temperature)
    started = time.perf_counter()
    columns = Columns(tokens, batch, what=what)

    def score(hidden_TBH: Tensor, target_TB: Tensor) -> Tensor:
        return _losses(model.head, hidden_TBH.flatten(0, 1), target_TB.flatten(), temperatures)

    means = means_over_text(
        model,
        columns,
        score,
        len(temperatures),
        segment=segment,
        what=what,
        display=display,
        workers=workers,
        shown=torch.min,
    )
    return [Evaluation.of(loss_nats, columns.predicted_tokens, started) for loss_nats in means]


def _losses(head: Head, hidden_NH: Tensor, target_N: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The sum over the tokens of the loss at each temperature, in float64."""
    total = torch.zeros(len(temperatures), dtype=torch.float64, device=hidden_NH.device)
    block = max(1, BLOCK_BYTES // (head.num_classes * torch.promote_types(hidden_NH.dtype, torch.float32).itemsize))
    for hidden_bH, target_b in zip(hidden_NH.split(block), target_N.split(block), strict=True):
        log_prob_bV = head.log_prob(hidden_bH)
        target_log_prob_b = log_prob_bV.gather(1, target_b.unsqueeze(1)).squeeze(1)
        for number, temperature in enumerate(temperatures):
            loss_b = torch.logsumexp(log_prob_bV / temperature, dim=1) - target_log_prob_b / temperature
            total[number] += loss_b.sum(dtype=torch.float64)
    return total


def tune_temperature(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    batch: int = 1,
    what: str = "temperature",
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> TemperatureSearch:
    """The temperature at which the loss over a text is lowest, to a thousandth.

    The loss is convex in 1/t: it is made of log-sum-exps of what is linear in that. So one pass, at temperatures from
    0.82 to 1.22, finds the best three, and the parabola through them the one between. Where the best one lies at an
    end, another pass goes on from there, down to 0.26 or up to 3.92.
    Raises UserError if the loss is not a number.
    """
    tried: dict[float, float] = {}
    steps = range(-STEPS, STEPS + 1)
    for _ in range(MOST_PASSES):
        temperatures = [round(STEP**step, DIGITS) for step in steps]
        found = evaluate_at(model, tokens, temperatures, batch=batch, what=what, display=display, workers=workers)
        losses = [each.loss_nats for each in found]
        tried = dict(sorted((tried | dict(zip(temperatures, losses, strict=True))).items()))
        best = min(tried, key=lambda each: (tried[each], abs(math.log(each))))  # of equals that nearest to 1
        if not math.isfinite(tried[best]):
            raise UserError(f"{what}: the loss is {tried[best]}: there is nothing to tune")
        place = list(tried).index(best)
        if 0 < place < len(tried) - 1:
            return TemperatureSearch(_lowest_point(list(tried.items())[place - 1 : place + 2]), tried)
        steps = range(steps.start - 2 * STEPS, steps.start) if place == 0 else range(steps.stop, steps.stop + 2 * STEPS)
    return TemperatureSearch(best, tried)


def _lowest_point(points: Sequence[tuple[float, float]]) -> float:
    """Of the parabola in 1/t through three (temperature, loss), of which the middle one has the lowest loss."""
    (a, loss_a), (b, loss_b), (c, loss_c) = ((1 / temperature, loss) for temperature, loss in points)
    left, right = (b - a) * (loss_b - loss_c), (b - c) * (loss_b - loss_a)
    if left == right:  # all three alike
        return points[1][0]
    return round(1 / (b - ((b - a) * left - (b - c) * right) / (2 * (left - right))), DIGITS)
