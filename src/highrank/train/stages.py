"""The stages of a run, from a recipe to a best model: what ``highrank train`` and ``highrank finetune`` do."""

import dataclasses
from typing import Any

from highrank.data import Corpus, find_corpus, is_published, load_corpus
from highrank.errors import UserError
from highrank.progress import SILENT, Display
from highrank.runs import Config, RunFolder, at_work
from highrank.runs.records import corpus_name
from highrank.train.loop import train_stage
from highrank.train.machine import Machine

__all__ = ["corpus_for", "corpus_of", "finetune", "train"]


def corpus_for(config: Config, data: str | None, *, name: str | None = None, display: Display = SILENT) -> Corpus:
    """The text that a configuration asks for, or that of the folder ``data``, at the length that it asks for. A text
    whose ``name`` is known need not be recognised."""
    folder = find_corpus(config.data.corpus, data, display=display)
    if name is None:
        name = config.data.corpus
        if data is not None and not is_published(name, folder):
            name = folder.resolve().name  # another text than the one that the recipe is about
    corpus = load_corpus(folder, name=name, display=display)
    limits = {
        "train": config.data.train_tokens,
        "valid": config.data.heldout_tokens,
        "test": config.data.heldout_tokens,
    }
    parts = {split: tokens[: limits[split] or None] for split, tokens in corpus.tokens.items()}
    return dataclasses.replace(corpus, tokens=parts)


def corpus_of(run: RunFolder, data: str | None, *, display: Display = SILENT) -> Corpus:
    """The text of a run: ``data`` if given, else the folder that it was trained on, else its name looked up."""
    if data is None and run.facts.get("corpus", {}).get("folder") is not None:
        try:
            data = str(run.text_folder())
        except UserError:
            if corpus_name(run.facts, run.config) != "kjv":  # which can be built again
                raise
    corpus = corpus_for(run.config, data, name=corpus_name(run.facts, run.config), display=display)
    run.check_corpus(corpus)
    return corpus


def train(run: RunFolder, corpus: Corpus, machine: Machine, *, resume: bool = False) -> dict[str, Any]:
    """Train to the end. Returns and records the figures of the best model."""
    with at_work(run.path, machine.workers):
        return _stage(run, "train", corpus, machine, resume)


def finetune(run: RunFolder, corpus: Corpus, machine: Machine, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune the best trained model to the end. Returns and records the figures of the best model."""
    machine.workers.first(lambda: _tell_of_the_training(run, machine.display))
    with at_work(run.path, machine.workers):
        return _stage(run, "finetune", corpus, machine, resume)


def _tell_of_the_training(run: RunFolder, display: Display) -> None:
    if run.best_model_path("train").exists() and run.metrics() and "train" not in run.results:
        display.message("training has not come to its end: fine-tuning its best model so far")


def _stage(run: RunFolder, stage: str, corpus: Corpus, machine: Machine, resume: bool) -> dict[str, Any]:
    figures = train_stage(run, stage, corpus, machine, resume=resume)
    machine.workers.first(lambda: run.add_result(stage, figures))
    return figures
