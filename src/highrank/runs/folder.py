"""The run folder: everything about one run, in files that other tools can read.

config.toml  run.json  vocabulary.txt       what was asked for, by which versions and command, on which text
metrics.jsonl  log.txt  results.json        what happened, and what was measured at the end of each stage
train/  finetune/                           model.safetensors (the best so far) and checkpoints of each stage
"""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from highrank import __version__
from highrank.data import Corpus, Vocabulary, is_published
from highrank.errors import UserError
from highrank.files import explained, new_file, new_folder, write_text
from highrank.models import LanguageModel
from highrank.reading import file_size, read_json
from highrank.runs.build import build_model
from highrank.runs.config import Config, read_config, to_toml
from highrank.runs.tensors import put_model_tensors, read_tensors, write_tensors

__all__ = ["STAGES", "RunFolder", "TrainedModel", "load"]

STAGES = ("train", "finetune")
LONGEST_RECORD_BYTES = 1 << 16


class CorpusFacts(msgspec.Struct):
    """What is read again of the corpus in run.json."""

    folder: str | None = None
    sha256: dict[Literal["train", "valid", "test"], str] = {}


class Facts(msgspec.Struct):
    corpus: CorpusFacts = msgspec.field(default_factory=CorpusFacts)


class SplitResult(msgspec.Struct):
    perplexity: float | None = None


class StageResult(msgspec.Struct):
    """What is read again of one stage in results.json."""

    train: SplitResult = msgspec.field(default_factory=SplitResult)
    valid: SplitResult = msgspec.field(default_factory=SplitResult)
    test: SplitResult = msgspec.field(default_factory=SplitResult)
    elapsed_s: float = 0.0


class TrainedModel(NamedTuple):
    """A model in evaluation mode and the vocabulary that its classes stand for."""

    model: LanguageModel
    vocabulary: Vocabulary


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def create(cls, path: Path, config: Config, vocabulary: Vocabulary, corpus: Corpus | None) -> "RunFolder":
        """A new run folder. Raises UserError if something is there already."""
        if path.exists():
            raise UserError(f"{path}: exists already; go on with --resume, or give another folder with --out")
        facts: dict[str, Any] = {
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "versions": {
                "highrank": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "machine": {
                "platform": platform.platform(),
                "cores": os.cpu_count(),
                "torch_threads": torch.get_num_threads(),
            },
        }
        if corpus is not None:
            facts["corpus"] = {
                "name": corpus.name,
                "as_published": is_published(corpus.name, corpus.folder),
                "folder": str(corpus.folder.resolve()),
                "sha256": dict(corpus.sha256),
                "tokens": {split: len(tokens) for split, tokens in corpus.tokens.items()},
            }
        with explained(path), new_folder(path) as temporary:
            (temporary / "config.toml").write_text(to_toml(config), encoding="utf-8")
            (temporary / "run.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
            vocabulary.save(temporary / "vocabulary.txt")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        if not (path / "config.toml").is_file():
            raise UserError(f"{path}: not a run folder (expected config.toml in it)")
        return cls(path)

    @property
    def config(self) -> Config:
        return read_config(self.path / "config.toml")

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.path / "vocabulary.txt")

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json holds: versions, command, corpus."""
        return _read_checked(self.path / "run.json", Facts)

    def stage_folder(self, stage: str) -> Path:
        return self.path / stage

    def best_model_path(self, stage: str) -> Path:
        return self.path / stage / "model.safetensors"

    def last_stage(self) -> str:
        """The last stage that has a model. Raises UserError if there is none yet."""
        for stage in reversed(STAGES):
            if self.best_model_path(stage).exists():
                return stage
        raise UserError(f"{self.path}: no trained model yet; train it first (highrank train ... --resume goes on)")

    def save_best(self, stage: str, tensors: Mapping[str, Tensor]) -> None:
        path = self.best_model_path(stage)
        path.parent.mkdir(exist_ok=True)
        with explained(path), new_file(path) as temporary:
            write_tensors(temporary, tensors)

    def load_model(self, stage: str | None = None, *, device: torch.device | str = "cpu") -> LanguageModel:
        """The best model of a stage (default: of the last one), in evaluation mode."""
        stage = stage or self.last_stage()
        path = self.best_model_path(stage)
        if not path.exists():
            raise UserError(f"{self.path}: the stage {stage!r} has no model yet; run it first")
        config, vocab_size, tensors = self.config, len(self.vocabulary), read_tensors(path)
        if not vocab_size:
            raise UserError(f"{self.path / 'vocabulary.txt'}: an empty vocabulary")
        with torch.device("meta"):  # sizes are compared before memory is spent on what a damaged configuration says
            put_model_tensors(build_model(config, vocab_size), tensors, source=path)
        model = build_model(config, vocab_size)
        put_model_tensors(model, tensors, source=path)
        return model.to(device).eval()

    def check_corpus(self, corpus: Corpus) -> None:
        """Raises UserError if this is not the text that the run was trained on."""
        if corpus.vocabulary.words != self.vocabulary.words:
            raise UserError(
                f"{corpus.folder}: its vocabulary ({len(corpus.vocabulary)} words) is not that of the run {self.path} "
                f"({len(self.vocabulary)} words); give the run's own corpus with --data"
            )
        for split, expected in self.facts.get("corpus", {}).get("sha256", {}).items():
            if corpus.sha256[split] != expected:
                raise UserError(
                    f"{corpus.folder}: {split}.txt has changed since the run {self.path} was started "
                    f"(sha256 {corpus.sha256[split][:12]}, was {expected[:12]}); restore it, or start a new run"
                )

    def log(self, line: str) -> None:
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        file_size(path)  # a plain file, or an error
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(LONGEST_RECORD_BYTES), b"")
            return [record for line in lines if (record := _metrics_record(line)) is not None]

    def forget_metrics_after(self, stage: str, step: int) -> None:
        """Drop what a killed process recorded beyond its last checkpoint: it will be recorded again."""
        kept = [r for r in self.metrics() if r["stage"] != stage or r["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    @property
    def results(self) -> dict[str, Any]:
        path = self.path / "results.json"
        return _read_checked(path, dict[str, StageResult]) if path.exists() else {}

    def change_config(self, config: Config) -> None:
        """Replace the configuration, and log what changed."""
        before, after = (to_toml(each).splitlines() for each in (self.config, config))
        changes = [f"{old} -> {new}" for old, new in zip(before, after, strict=True) if old != new]
        with explained(self.path):
            write_text(self.path / "config.toml", to_toml(config))
        self.log(f"settings changed: {'; '.join(changes)}")

    def forget_results(self, *names: str) -> None:
        results = {name: result for name, result in self.results.items() if name not in names}
        self._write_results(results)

    def add_result(self, name: str, result: Mapping[str, Any]) -> None:
        """Merge into results.json, under ``name``."""
        results = self.results
        results[name] = {**results.get(name, {}), **result}
        self._write_results(results)

    def _write_results(self, results: Mapping[str, Any]) -> None:
        path = self.path / "results.json"
        with explained(path):
            write_text(path, json.dumps(results, indent=2) + "\n")


def _read_checked(path: Path, expected: Any) -> dict[str, Any]:
    """The JSON object, all of it, where what is used again is of the types that ``expected`` says."""
    values = read_json(path)
    try:
        msgspec.convert(values, expected)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # half a character is no name for msgspec
        raise UserError(f"{path}: damaged: {error}") from error
    return values


def _metrics_record(line: bytes) -> dict[str, Any] | None:
    """None for a line cut short by a kill: what it said is said again after the resume."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("stage"), str) and isinstance(record.get("step"), int)
    return record if whole else None


def load(run: str | os.PathLike[str], *, stage: str | None = None, device: torch.device | str = "cpu") -> TrainedModel:
    """The trained model of a run folder, with its vocabulary: of the last stage, unless ``stage`` says otherwise.

    Raises UserError (a ValueError) naming the file and what is wrong with it.
    """
    folder = RunFolder.open(Path(run))
    return TrainedModel(folder.load_model(stage, device=device), folder.vocabulary)
