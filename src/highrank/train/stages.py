"""The stages of a run, from a recipe to a best model: what ``highrank train`` and ``highrank finetune`` do."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from highrank.data import Corpus, find_corpus, load_corpus
from highrank.errors import UserError
from highrank.progress import SILENT, Display
from highrank.runs import Config, RunFolder, to_toml
from highrank.train.loop import train_stage

__all__ = ["Machine", "corpus_for", "corpus_of", "finetune", "open_or_create", "train"]


@dataclass(frozen=True)
class Machine:
    """Where and how a stage runs: nothing here changes its result on one machine."""

    device: torch.device
    checkpoint_every_s: float = 600.0
    display: Display = SILENT


def corpus_for(config: Config, data: str | None) -> Corpus:
    """The text that a configuration asks for, or that of the folder ``data``, at the length that it asks for."""
    corpus = load_corpus(find_corpus(config.data.corpus, data), name=config.data.corpus)
    limits = {
        "train": config.data.train_tokens,
        "valid": config.data.heldout_tokens,
        "test": config.data.heldout_tokens,
    }
    parts = {split: tokens[: limits[split] or None] for split, tokens in corpus.tokens.items()}
    return replace(corpus, tokens=parts)


def corpus_of(run: RunFolder, data: str | None) -> Corpus:
    """The text of a run: ``data`` if given, else the folder that it was trained on, else its name looked up."""
    known = run.facts.get("corpus", {}).get("folder")
    if data is None and known is not None and Path(known).is_dir():
        data = known
    corpus = corpus_for(run.config, data)
    run.check_corpus(corpus)
    return corpus


def open_or_create(path: Path, config: Config, corpus: Corpus, *, resume: bool) -> RunFolder:
    """A new run folder, or with ``resume`` the one that is there, if it was made of the same configuration and text."""
    if not (resume and path.exists()):
        return RunFolder.create(path, config, corpus.vocabulary, corpus)
    run = RunFolder.open(path)
    if to_toml(run.config) != to_toml(config):
        changed = _first_difference(to_toml(run.config), to_toml(config))
        raise UserError(
            f"{path}: the run was started with other settings ({changed}); resume with the same, or start anew"
        )
    run.check_corpus(corpus)
    return run


def train(run: RunFolder, corpus: Corpus, machine: Machine, *, resume: bool = False) -> dict[str, Any]:
    """Train to the end. Returns and records the figures of the best model."""
    return _stage(run, "train", corpus, machine, resume)


def finetune(run: RunFolder, corpus: Corpus, machine: Machine, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune the best trained model to the end. Returns and records the figures of the best model."""
    if not resume and run.stage_folder("finetune").exists():
        raise UserError(f"{run.stage_folder('finetune')}: exists already; go on with --resume, or remove it")
    return _stage(run, "finetune", corpus, machine, resume)


def _stage(run: RunFolder, stage: str, corpus: Corpus, machine: Machine, resume: bool) -> dict[str, Any]:
    run.stage_folder(stage).mkdir(exist_ok=True)
    figures = train_stage(
        run,
        stage,
        corpus,
        device=machine.device,
        resume=resume,
        checkpoint_every_s=machine.checkpoint_every_s,
        display=machine.display,
    )
    # Evaluations of an earlier model of this stage no longer hold.
    same_model = run.results.get(stage, {}).get("valid_loss_nats") == figures["valid_loss_nats"]
    run.add_result(stage, figures, keep=same_model)
    return figures


def _first_difference(before: str, after: str) -> str:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return next((f"{old}, now {new}" for old, new in pairs if old != new), "a setting")
