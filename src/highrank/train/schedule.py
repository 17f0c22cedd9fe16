"""The learning rate over a stage, as a share of its peak."""

import math
from collections.abc import Callable

__all__ = ["rate_share"]


def _linear(done: float) -> float:
    return 1.0 - done


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


_AFTER_THE_PEAK: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": _linear,
    "cosine": _cosine,
}


def rate_share(schedule: str, warmup: float, done: float) -> float:
    """The share of the peak at ``done`` (0 to 1) of the stage: up in a line from zero over the first ``warmup``, then
    as the ``schedule`` says: "constant", or "linear" or half a "cosine" down to zero at the end.

    A long warm-up and a line down is the shape that Smith and Topin 2017 (arXiv 1708.07120) call 1cycle.
    """
    if done < warmup:
        return done / warmup
    return _AFTER_THE_PEAK[schedule]((done - warmup) / (1.0 - warmup))
