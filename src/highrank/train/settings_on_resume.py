"""A run folder for a stage: a new one, or the one that is there, with what of its settings may change on the way."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from highrank.data import Corpus
from highrank.errors import UserError
from highrank.files import is_free
from highrank.progress import SILENT
from highrank.runs import STAGES, Config, RunFolder, at_work, parse_config
from highrank.runs.config import changed_settings
from highrank.runs.records import checkpoint_folders, has_ended
from highrank.train.checks import check_can_go_on, check_can_train, check_not_begun, check_trained

__all__ = ["open_or_create", "set_later_settings"]

# They say how an update is computed, not which: CUDA graphs change no bit, the others only how it is rounded.
EXECUTION = ("cuda_graphs", "recurrence", "implementation")
MAY_CHANGE_LATER = ("finetune", "dynamic", *(f"train.{name}" for name in EXECUTION))
MAY_CHANGE = ("train.lr", "train.clip", *MAY_CHANGE_LATER)
STAGE_IN_WORDS = {"train": "training", "finetune": "fine-tuning"}


def open_or_create(
    path: Path,
    config: Config,
    corpus: Corpus,
    *,
    resume: bool,
    workers: int = 1,
    device: torch.device | str = "cpu",
    overrides: Sequence[str] | None = None,
    stages: Sequence[str] = ("train",),
    notice: Callable[[str], None] = SILENT.message,
) -> RunFolder:
    """A new run folder, or with ``resume`` the one that is there, if it was made of the same configuration and text.

    What may change on the way, logged and said to ``notice``: the rate and clipping of training, how its updates are
    computed, the settings of later stages, and at a constant rate the epochs of training; where ``overrides`` are
    given, which ``config`` has in it, only those that they name. Those of a stage that has come to its end stay, and
    ``notice`` is told of others that were asked for; but with more epochs training goes on, if there is a checkpoint
    and fine-tuning has not begun. Raises UserError, and writes nothing, where ``check_can_train`` does for those of the
    ``stages`` that have not ended.
    """
    if not resume or is_free(path):
        check_can_train(config, corpus, workers, device, stages=stages)  # before anything is written
        if resume:
            notice(f"nothing to resume in {path}: starting")
        return RunFolder.create(path, config, corpus.vocabulary, corpus)
    run = RunFolder.open(path)
    begun = run.config
    constant = begun.train.schedule == "constant" and not begun.train.warmup  # else the epochs say what the rate is
    if fixed := _changed_but((*MAY_CHANGE, "train.epochs") if constant else MAY_CHANGE, begun, config):
        changed = "; ".join(f"{name} = {old}, now {new}" for name, (old, new) in fixed.items())
        raise UserError(
            f"{path}: the run was started with other settings ({changed}); resume with the same, or start anew"
        )
    run.check_corpus(corpus)
    check_can_go_on(run, "train")
    ended = [stage for stage in STAGES if has_ended(path, stage)]
    asked = config
    if overrides is not None:
        asked = parse_config(msgspec.to_builtins(begun), source=str(path), overrides=overrides)
    if "train" in ended and asked.train.epochs > begun.train.epochs:
        _check_can_be_longer(run)
        ended.remove("train")
    if overrides is not None:
        # Of a stage that has ended nothing can be changed, with --set or without.
        of_ended = {stage: getattr(asked, stage) for stage in ended}
        if kept := changed_settings(asked, replace(config, **of_ended)):
            stays = ", ".join(f"{name} stays {value} (the recipe has {other})" for name, (value, other) in kept.items())
            notice(f"{stays}: --set changes what a run was started with")
    config = asked
    config = _with_settings_of_the_ended(run, ended, config, notice)
    if to_come := [stage for stage in stages if stage not in ended]:
        check_can_train(config, corpus, workers, device, stages=to_come)
    # Not only where they differ: in the file of an earlier version defaults stand in for settings that it lacks.
    if tomllib.loads((path / "config.toml").read_text(encoding="utf-8")) == msgspec.to_builtins(config):
        return run
    with at_work(path):
        return run.change_config(config, notice=notice)


def _check_can_be_longer(run: RunFolder) -> None:
    """Raises UserError if a training at its end cannot go on."""
    if not checkpoint_folders(run.stage_folder("train")):
        raise UserError(f"{run.path}: training has come to its end, and there is no checkpoint to train longer from")
    try:
        check_not_begun(run, "finetune")
    except UserError as error:
        raise UserError(
            f"{run.path}: fine-tuning has begun from the trained model; to train longer remove "
            f"{run.stage_folder('finetune')}"
        ) from error


def _changed_but(may_change: Sequence[str], begun: Config, config: Config) -> dict[str, tuple[str, str]]:
    """``changed_settings``, without those that are named, by themselves or with their section."""
    return {
        name: values
        for name, values in changed_settings(begun, config).items()
        if name not in may_change and name.partition(".")[0] not in may_change
    }


def _with_settings_of_the_ended(
    run: RunFolder, ended: Sequence[str], config: Config, notice: Callable[[str], None]
) -> Config:
    """``config``, but of stages that have come to their end the settings that they had: their figures were made so.

    How an update is computed may change still: fine-tuning has it from ``train``.
    """
    execution = {name: getattr(config.train, name) for name in EXECUTION}
    begun = replace(run.config, train=replace(run.config.train, **execution))
    for stage in ended:
        kept = replace(config, **{stage: getattr(begun, stage)})
        if kept != config:
            notice(_ended(stage, changed_settings(kept, config)))
            config = kept
    return config


def _ended(stage: str, asked: Mapping[str, tuple[str, str]]) -> str:
    """``asked``: by name of each setting the value that stays and the one asked for."""
    stays = ", ".join(f"{name} stays {kept} (asked for: {other})" for name, (kept, other) in asked.items())
    return f"{STAGE_IN_WORDS[stage]} has come to its end: {stays}"


def set_later_settings(
    run: RunFolder,
    corpus: Corpus,
    overrides: Sequence[str],
    *,
    resume: bool = False,
    workers: int = 1,
    device: torch.device | str = "cpu",
    notice: Callable[[str], None] = SILENT.message,
) -> RunFolder:
    """Change what ``finetune`` may still change of a trained run: the settings of fine-tuning and dynamic evaluation,
    and how an update is computed.

    Raises UserError, and changes nothing, for other settings, where fine-tuning has begun (without ``resume``) or has
    come to its end, and where there is no trained model or ``check_can_train`` refuses what is asked for.
    """
    begun = run.config
    changed = parse_config(msgspec.to_builtins(begun), source=str(run.path), overrides=overrides)
    if _changed_but(MAY_CHANGE_LATER, begun, changed):
        raise UserError(
            f"--set: a trained run can change [finetune], [dynamic], {', '.join(MAY_CHANGE_LATER[2:])} only, "
            f"got {' '.join(overrides)}"
        )
    if not resume:
        check_not_begun(run, "finetune")
    kept = replace(changed, finetune=begun.finetune)
    if not has_ended(run.path, "finetune"):
        check_can_go_on(run, "finetune")
        check_trained(run)
        check_can_train(changed, corpus, workers, device, stages=("finetune",))
    elif kept != changed:
        raise UserError(
            f"{run.path}: {_ended('finetune', changed_settings(kept, changed))}; "
            f"to fine-tune anew, remove {run.stage_folder('finetune')}"
        )
    if changed == begun:
        return run
    with at_work(run.path):
        return run.change_config(changed, notice=notice)
