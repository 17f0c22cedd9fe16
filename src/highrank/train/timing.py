"""How long an update takes on this machine, by making some."""

import statistics
import time

import torch

from highrank.data import Corpus
from highrank.progress import SILENT, Display
from highrank.runs import Config, build_model
from highrank.train.checks import training_columns
from highrank.train.state import StageState
from highrank.train.update import update

__all__ = ["time_updates"]

WARM_UPDATES = 2  # libraries make themselves ready in a first one; a second of the same length may be recorded
MOST_UPDATES, ENOUGH_S = 9, 10.0


def time_updates(config: Config, corpus: Corpus, device: torch.device, *, display: Display = SILENT) -> float:
    """Seconds an update of ``train.bptt`` steps takes one worker on ``device``: the median of up to nine.

    Of a model that has just begun, with averaged weights if ``train.average_from`` says when. Two more updates come
    first, untimed; once the timed ones add up to more than ten seconds no other follows. It takes the memory of
    training.
    """
    train = config.train
    columns = training_columns(config, corpus)
    state = StageState(build_model(config, len(corpus.vocabulary)).train().to(device), config)
    if train.average_from:
        state.start_averaging()
    seconds: list[float] = []
    for number in range(WARM_UPDATES + MOST_UPDATES):
        display.progress("timing updates", number, WARM_UPDATES + MOST_UPDATES, unit="updates")
        began = time.perf_counter()
        done = update(state, columns, config, seed=train.seed, lr=train.lr, length=train.bptt)
        done.loss_sum.item()  # a GPU is at work until then
        if number >= WARM_UPDATES:
            seconds.append(time.perf_counter() - began)
        if sum(seconds) > ENOUGH_S:
            break
    return statistics.median(seconds)
