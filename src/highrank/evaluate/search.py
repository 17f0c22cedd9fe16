"""Tuning lr and lamb of dynamic evaluation on a part of the validation text.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943) on a grid: every setting is tried on the beginning of
the text, the better ones on three times as much, the best few on all of it. What comes out does not depend on how many
threads share the work.
"""

import copy
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from highrank.errors import UserError
from highrank.evaluate.adaptation import DynamicSettings, GradientStatistics
from highrank.evaluate.dynamic import dynamic_evaluate
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display, UntilStopped
from highrank.runs.device import total_memory

__all__ = ["Trial", "search_settings"]

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
ROUNDS = 3
KEPT = 1 / 3  # of the settings, from one round to the next, on a text three times as long
FEWEST_TOKENS = 50
# Of the size of the weights, as a trial begins: RMS, decays and rates, these two in one allocation each, and weights.
TRIAL_COPIES = 6


class Trial(NamedTuple):
    """One setting, and its mean loss over the first ``tokens`` tokens. inf: the loss was lost."""

    settings: DynamicSettings
    tokens: int
    loss_nats: float


def search_settings(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    statistics: GradientStatistics,
    start: DynamicSettings,
    *,
    threads: int = 0,
    display: Display = SILENT,
) -> list[Trial]:
    """The last trial of every setting: first those on the whole text, the best one first.

    lr and lamb of ``start`` are multiplied by 1/4 to 4, each by each. On a CPU the trials of a round run side by side
    in ``threads`` (0: as many as there are processors for this process, and as find room in half of the memory), each
    with weights of its own that move.
    """
    grid = [start._replace(lr=start.lr * lr, lamb=start.lamb * lamb) for lr, lamb in product(FACTORS, FACTORS)]
    settings = list(dict.fromkeys(grid))  # a lamb of 0 stays 0
    rounds = _rounds(len(settings), len(tokens))
    total, done = sum(number * length for number, length in rounds), 0
    last: dict[DynamicSettings, Trial] = {}
    threads = min(len(settings), threads or min(_processors(model), _room(model)))
    display.message(f"search: {len(settings)} settings, {threads} at once")
    with _Trials(model, statistics, threads) as trials:
        for number, length in rounds:
            if last:
                settings = sorted(settings, key=lambda each: last[each].loss_nats)[:number]
            for trial in trials.run(settings, tokens[:length]):
                last[trial.settings] = trial
                done += length
                display.progress("search", done, total)
                display.message(
                    f"search: lr {trial.settings.lr:g}, lamb {trial.settings.lamb:g}: {trial.loss_nats:.4f} nats over "
                    f"{trial.tokens:,} tokens"
                )
    return sorted(last.values(), key=lambda trial: (-trial.tokens, trial.loss_nats))


def _rounds(settings: int, tokens: int) -> list[tuple[int, int]]:
    """(settings, tokens) of each round: the last one has the whole text, those before it what is long enough."""
    rounds = [
        (math.ceil(settings * KEPT**number), int(tokens * KEPT ** (ROUNDS - 1 - number))) for number in range(ROUNDS)
    ]
    first = next(number for number, (_, length) in enumerate(rounds) if length >= FEWEST_TOKENS or length == tokens)
    # Whichever round is the first one has all settings.
    return [(settings, rounds[first][1]), *rounds[first + 1 :]]


def _processors(model: LanguageModel) -> int:
    if next(model.parameters()).device.type != "cpu":
        return 1  # they would fight for the one device
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _room(model: LanguageModel) -> int:
    """For how many trials, where nothing else takes much memory."""
    there = total_memory(next(model.parameters()).device)
    trial = TRIAL_COPIES * sum(parameter.nbytes for parameter in model.parameters())
    return len(FACTORS) ** 2 if there is None else max(1, there // 2 // trial)


class _Ended(Exception):  # noqa: N818 - not an error
    """The trials are not wanted any more."""


class _Trials:
    """A context manager: threads that run trials. PyTorch's operations, which take nearly all of the time, do not hold
    Python's lock."""

    def __init__(self, model: LanguageModel, statistics: GradientStatistics, threads: int) -> None:
        self._model, self._statistics, self._threads = model, statistics, threads
        self._of_thread = threading.local()
        self._ended = threading.Event()

    def __enter__(self) -> "_Trials":
        self._threads_before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, "search", self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def run(self, settings: Sequence[DynamicSettings], tokens: NDArray[np.int32]) -> Iterator[Trial]:
        return self._pool.map(lambda each: self._trial(each, tokens), settings)

    def _begin(self) -> None:
        # One each, however many trials run side by side: sums, and so the result, must not depend on it.
        torch.set_num_threads(1)

    def _model_of_thread(self) -> LanguageModel:
        """Its parameters are other ones with the same numbers: a trial moves copies, and puts these back at its end."""
        if not hasattr(self._of_thread, "model"):
            shared = {id(each): nn.Parameter(each.detach(), each.requires_grad) for each in self._model.parameters()}
            self._of_thread.model = copy.deepcopy(self._model, shared)
        model: LanguageModel = self._of_thread.model
        return model

    def _trial(self, settings: DynamicSettings, tokens: NDArray[np.int32]) -> Trial:
        model = self._model_of_thread()
        # Between two segments a trial hears that a signal or an error has ended the search.
        display = UntilStopped(SILENT, self._ended, _Ended())
        try:
            evaluation = dynamic_evaluate(model, tokens, self._statistics, settings, display=display)
        except UserError:  # of a rate too high: the text is long enough
            return Trial(settings, len(tokens), math.inf)
        return Trial(settings, len(tokens), evaluation.loss_nats)
