"""All the readers, with their good files."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from benchmarks.fuzzing.outside import archives, imports, matrices
from benchmarks.fuzzing.runs import SIZES, checkpoints, gradient_statistics, records, trained_model
from benchmarks.fuzzing.target import Target, copied
from benchmarks.fuzzing.texts import configurations, corpus_cache, corpus_text, own_text
from highrank.data import encoding, load_corpus
from highrank.runs import (
    RunFolder,
    build_model,
    parse_config,
)
from highrank.runs.tensors import model_tensors

__all__ = ["make_targets"]

WORDS = [f"w{number}" for number in range(11)]
VALUES = {
    "data": {"corpus": "text"},
    "model": SIZES,
    "train": {"batch": 4, "micro_batch": 2, "bptt": 5, "valid_batch": 2},
    "dynamic": {"batch": 4, "bptt": 25},
}
SPLITS = ("train", "valid", "test")


def make_targets(work: Path) -> dict[str, Target]:
    """All targets, with their good files under ``work``."""
    torch.manual_seed(1)
    text = _write_text(work / "text")
    encoding.SETTLED_NS = -(1 << 62)  # files may be remembered at once
    corpus = load_corpus(text, cache=work / "cache")
    config = parse_config(VALUES, source="fuzz")
    run = RunFolder.create(work / "run", config, corpus.vocabulary, corpus)
    model = build_model(config, len(corpus.vocabulary)).eval()
    run.save_best("train", model_tensors(model))
    targets = [
        *checkpoints(work, config, len(corpus.vocabulary)),
        trained_model(work, run),
        records(work, run, corpus),
        gradient_statistics(work, run, model, corpus),
        corpus_cache(work, text),
        corpus_text(work, text),
        own_text(work, text),
        *configurations(work, config),
        *imports(work),
        *archives(work, text),
        matrices(work),
    ]
    for number, target in enumerate(targets):
        if not target.accepted:
            content = target.read(copied(target, work / "input"), lambda line: None)
            targets[number] = dataclasses.replace(target, accepted=(content,))
    return {target.name: target for target in targets}


def _write_text(folder: Path) -> Path:
    generator = np.random.default_rng(5)
    folder.mkdir(parents=True)
    for split, lines in zip(SPLITS, (40, 8, 8), strict=True):
        drawn = generator.choice(WORDS, (lines, 9)).tolist()
        first = [WORDS] if split == "train" else []
        (folder / f"{split}.txt").write_text("".join(" ".join(line) + "\n" for line in [*first, *drawn]))
    return folder
