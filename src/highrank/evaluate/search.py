"""Tuning lr and lamb of dynamic evaluation on a part of the validation text."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from highrank.errors import UserError
from highrank.evaluate.adaptation import DynamicSettings, GradientStatistics
from highrank.evaluate.dynamic import dynamic_evaluate
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display

__all__ = ["Trial", "search_settings"]


class Trial(NamedTuple):
    settings: DynamicSettings
    loss_nats: float  # inf: the loss was lost


def search_settings(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    statistics: GradientStatistics,
    start: DynamicSettings,
    *,
    factor: float = 2.0,
    rounds: int = 6,
    display: Display = SILENT,
) -> list[Trial]:
    """All trials, the best first: lr and lamb in turn, multiplied or divided by ``factor`` while that helps.

    The two act nearly independently, so a walk along each needs far fewer trials than a grid. At most ``rounds`` steps
    in each direction.
    """
    trials: dict[DynamicSettings, float] = {}

    def loss_of(settings: DynamicSettings) -> float:
        if settings not in trials:
            what = f"search: lr {settings.lr:g}, lamb {settings.lamb:g}"
            try:
                trials[settings] = dynamic_evaluate(
                    model, tokens, statistics, settings, what=what, display=display
                ).loss_nats
            except UserError:
                trials[settings] = float("inf")
            display.message(f"{what}: {trials[settings]:.4f} nats")
        return trials[settings]

    best = start
    for name in ("lr", "lamb", "lr"):
        for direction in (factor, 1 / factor):
            moved = False
            for _ in range(rounds):
                candidate = best._replace(**{name: getattr(best, name) * direction})
                if loss_of(candidate) >= loss_of(best):
                    break
                best, moved = candidate, True
            if moved:
                break  # what helped in one direction need not be tried in the other
    return sorted((Trial(settings, loss) for settings, loss in trials.items()), key=lambda trial: trial.loss_nats)
