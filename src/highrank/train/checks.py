"""What is checked before a stage begins, and before anything of it is written."""

from collections.abc import Sequence

import torch

from highrank.data import Corpus
from highrank.data.batches import SHORTEST_TRAINING_COLUMN, Columns
from highrank.errors import UserError
from highrank.models import persistent_lstm
from highrank.runs import Config, RunFolder
from highrank.runs.records import cannot_go_on

__all__ = [
    "USUAL_RATE",
    "check_can_go_on",
    "check_can_train",
    "check_device",
    "check_not_begun",
    "check_rate",
    "check_trained",
    "check_workers",
    "training_columns",
]

HIGHEST_ADAM_RATE = 1.0  # of steps that move each weight by about the rate
USUAL_RATE = {"sgd": 20.0, "adamw": 0.001, "rmsprop": 0.001}


def check_can_train(
    config: Config,
    corpus: Corpus,
    workers: int,
    device: torch.device | str,
    *,
    stages: Sequence[str] = ("train",),
) -> None:
    """Raises UserError for a text that is too short, too many workers, a device that cannot do what is asked for, or a
    rate that the optimizer cannot have in one of the ``stages``."""
    training_columns(config, corpus)
    check_workers(config, workers)
    check_device(config, device)
    for stage in stages:
        check_rate(config, stage)


def training_columns(config: Config, corpus: Corpus) -> Columns:
    """The training text in columns. Raises UserError if it, or the validation text, is too short for its batch."""
    train, tokens = config.train, corpus.tokens
    Columns(tokens["valid"], train.valid_batch, what="valid.txt", setting="train.valid_batch")  # not after an epoch
    return Columns(
        tokens["train"], train.batch, what="train.txt", setting="train.batch", shortest=SHORTEST_TRAINING_COLUMN
    )


def check_workers(config: Config, workers: int) -> None:
    """Raises UserError if there are more workers than micro-batches for them to share."""
    micro_batches = config.train.batch // config.micro_batch
    if workers > micro_batches:
        raise UserError(
            f"{workers} workers, but an update has {micro_batches} micro-batches to share: take fewer, or start "
            f"a run with a smaller train.micro_batch, a divisor of train.batch {config.train.batch}",
            exit_code=2,
        )


def check_device(config: Config, device: torch.device | str) -> None:
    """Raises UserError if the device cannot compute in the way that was asked for."""
    device, train, model = torch.device(device), config.train, config.model
    if train.cuda_graphs and device.type != "cuda":
        raise UserError(
            f"train.cuda_graphs: needs an NVIDIA GPU, not {device}; --set train.cuda_graphs=false gives the same bits "
            "without",
            exit_code=2,
        )
    if train.recurrence == "torch":
        return
    for width in {*[model.hidden_features] * (model.num_layers - 1), model.last_hidden_features}:
        reason = persistent_lstm.cannot_run(device, torch.bfloat16, config.micro_batch, width)
        if reason is not None:
            raise UserError(
                f"train.recurrence: {train.recurrence} cannot run: {reason}; --set train.recurrence=torch computes "
                "the same, rounded differently",
                exit_code=2,
            )


def check_rate(config: Config, stage: str) -> None:
    """Raises UserError for a rate that only SGD can have, as the default of fine-tuning is."""
    optimizer, lr = config.train.optimizer, getattr(config, stage).lr
    if optimizer != "sgd" and lr > HIGHEST_ADAM_RATE:
        raise UserError(
            f"{stage}.lr: {lr:g} is a rate for SGD, with which {optimizer} loses all in its first updates; usual is "
            f"--set {stage}.lr={USUAL_RATE[optimizer]:g}",
            exit_code=2,
        )


def check_can_go_on(run: RunFolder, stage: str) -> None:
    """Raises UserError if the stage has a model, has not ended, and has no checkpoint to go on from."""
    if reason := cannot_go_on(run.path, stage, run.metrics()):
        raise UserError(f"{run.path}: {reason}")


def check_trained(run: RunFolder) -> None:
    """Raises UserError if there is no model for fine-tuning to start from."""
    if not run.best_model_path("train").exists():
        raise UserError(f"{run.path}: no trained model to fine-tune; train it first")


def check_not_begun(run: RunFolder, stage: str) -> None:
    """Raises UserError if the stage has left something that would be lost if it began anew."""
    folder = run.stage_folder(stage)
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder}: exists already; go on with --resume, or remove it")
