"""Training: the loop, its optimizer, its state, what it records."""

from highrank.train.averaging import WeightAverage, averaged_weights
from highrank.train.checks import check_can_train
from highrank.train.interruption import Interrupted
from highrank.train.loop import train_stage
from highrank.train.machine import Machine
from highrank.train.objective import objective
from highrank.train.optimizer import make_optimizer
from highrank.train.settings_on_resume import open_or_create, set_later_settings
from highrank.train.stages import corpus_for, corpus_of, finetune, train
from highrank.train.state import Position, StageState
from highrank.train.timing import time_updates
from highrank.train.update import Update, update

__all__ = [
    "Interrupted",
    "Machine",
    "Position",
    "StageState",
    "Update",
    "WeightAverage",
    "averaged_weights",
    "check_can_train",
    "corpus_for",
    "corpus_of",
    "finetune",
    "make_optimizer",
    "objective",
    "open_or_create",
    "set_later_settings",
    "time_updates",
    "train",
    "train_stage",
    "update",
]
