"""The run folder: everything about one run, in files that other tools can read.

config.toml  run.json  vocabulary.txt       what was asked for, by which versions and command, on which text
metrics.jsonl  log.txt  results.json        what happened, and what was measured at the end of each stage
train/  finetune/                           model.safetensors (the best so far) and checkpoints of each stage
.lock  .lock-holder  .writing               who is at work (lock.py)
"""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from highrank import __version__
from highrank.data import Corpus, Vocabulary, is_published
from highrank.data.catalog import present_folder
from highrank.errors import UserError
from highrank.files import (
    append_line,
    explained,
    file_sha256,
    is_free,
    new_file,
    new_folder,
    remove_leftovers,
    write_text,
)
from highrank.models import LanguageModel
from highrank.progress import SILENT
from highrank.runs.build import build_model
from highrank.runs.config import Config, changed_settings, read_whole_config, to_whole_toml
from highrank.runs.lock import writing
from highrank.runs.records import (
    STAGES,
    Facts,
    Result,
    best_model_path,
    corpus_name,
    read_facts,
    read_metrics,
    read_results,
)
from highrank.runs.tensors import put_model_tensors, read_tensors, write_tensors
from highrank.runs.verify import written_differently
from highrank.workers import ALONE, Workers

__all__ = ["ModelStamp", "RunFolder", "TrainedModel", "load"]


class ModelStamp(NamedTuple):
    """Which best model of a stage a result is of."""

    stage: str
    sha256: str | None  # of its file; None where there is none


class TrainedModel(NamedTuple):
    """A model in evaluation mode and the vocabulary that its classes stand for."""

    model: LanguageModel
    vocabulary: Vocabulary


@dataclass(frozen=True)
class RunFolder:
    """A run folder, with what it was begun with as it stood when it was opened.

    ``facts`` is what run.json holds: versions, command, machine, corpus.
    """

    path: Path
    config: Config
    vocabulary: Vocabulary
    facts: Facts

    @classmethod
    def create(cls, path: Path, config: Config, vocabulary: Vocabulary, corpus: Corpus | None) -> "RunFolder":
        """A new run folder; an empty one may be there. Raises UserError if something else is."""
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{str(path)!r}: expected a name in UTF-8, which tensor files need", exit_code=2) from error
        taken = UserError(f"{path}: exists already; go on with --resume, or give another folder with --out")
        if not is_free(path):
            raise taken
        facts: Facts = {
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
        try:
            with explained(path), new_folder(path) as temporary:
                (temporary / "config.toml").write_text(to_whole_toml(config), encoding="utf-8")
                (temporary / "run.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
                vocabulary.save(temporary / "vocabulary.txt")
        except OSError as error:
            if path.exists():  # another process was faster
                raise taken from error
            raise UserError(
                f"{path}: cannot be created, {path.parent} takes no new folder ({error.strerror})"
            ) from error
        return cls(path, config, vocabulary, facts)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        if not (path / "config.toml").is_file():
            raise UserError(f"{path}: not a run folder (expected config.toml in it)")
        facts = read_facts(path)
        return cls(path, read_whole_config(path / "config.toml"), Vocabulary.load(path / "vocabulary.txt"), facts)

    def stage_folder(self, stage: str) -> Path:
        return self.path / stage

    def best_model_path(self, stage: str) -> Path:
        return best_model_path(self.path, stage)

    def last_stage(self) -> str:
        """The last stage that has a model. Raises UserError if there is none yet."""
        for stage in reversed(STAGES):
            if self.best_model_path(stage).exists():
                return stage
        raise UserError(f"{self.path}: no trained model yet; train it first (highrank train ... --resume goes on)")

    def save_best(self, stage: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the best model of a stage, once the new one has been read back from the disk; the results of the one
        before go with it."""
        path = self.best_model_path(stage)
        self.begin_stage(stage)
        with contextlib.ExitStack() as until_replaced, explained(path), new_file(path) as temporary:
            write_tensors(temporary, tensors)
            if difference := written_differently(temporary, tensors):
                raise UserError(
                    f"{path}: is not on the disk as it was written ({difference}); the one before it stands. "
                    "The disk, or what lies between, may be failing"
                )
            until_replaced.enter_context(writing(self.path))  # no result of the one before is added now
            self.forget_results_of(stage)
            for statistics in self.stage_folder(stage).glob(self.statistics_path(stage, "*").name):
                statistics.unlink(missing_ok=True)  # each is as large as a model, and of the one before

    def statistics_path(self, stage: str, key: str) -> Path:
        """Where gradient statistics of the best model of a stage are kept; ``key`` tells which."""
        return self.stage_folder(stage) / f"gradient-statistics-{key}.safetensors"

    def model_stamp(self, stage: str) -> ModelStamp:
        path = self.best_model_path(stage)
        return ModelStamp(stage, file_sha256(path) if path.exists() else None)

    def check_best(self, stage: str) -> None:
        """Raises UserError if the best model so far, of which no checkpoint has a copy, cannot be read."""
        try:
            read_tensors(self.best_model_path(stage))
        except UserError as error:
            raise UserError(
                f"{error}; it is the best model of {stage} so far and nothing else holds it: put a copy of it back, or "
                "start anew"
            ) from error

    def begin_stage(self, stage: str) -> None:
        """Make the folder of a stage, if it is not there yet."""
        with explained(self.stage_folder(stage)):
            self.stage_folder(stage).mkdir(exist_ok=True)

    def remove_leftovers(self, stage: str) -> None:
        """Remove what killed processes were writing. For a stage at work: of an evaluation beside it nothing goes."""
        with writing(self.path), explained(self.path):
            remove_leftovers(self.path, self.stage_folder(stage))

    def load_model(
        self, stage: str | None = None, *, device: torch.device | str = "cpu", workers: Workers = ALONE
    ) -> LanguageModel:
        """The best model of a stage (default: of the last one), in evaluation mode, on each of the ``workers``.

        Without what is for training only (``LanguageModel.past_decoder``).
        """
        path, tensors = workers.first(lambda: self._best_tensors(stage or self.last_stage()))
        if not len(self.vocabulary):
            raise UserError(f"{self.path / 'vocabulary.txt'}: an empty vocabulary")
        with torch.device("meta"):  # sizes are compared before memory is spent on what a damaged configuration says
            put_model_tensors(build_model(self.config, len(self.vocabulary)), tensors, source=path)
        model = build_model(self.config, len(self.vocabulary))
        put_model_tensors(model, tensors, source=path)
        model.past_decoder = None
        return model.to(device).eval()

    def stamped_model(
        self, stage: str | None = None, *, device: torch.device | str = "cpu", workers: Workers = ALONE
    ) -> tuple[ModelStamp, LanguageModel]:
        """The model of ``load_model``, and its stamp.

        The stamp is taken first: should training replace the file meanwhile, what is measured of the newer model is
        not recorded, while the other order would record the earlier one's figures as those of the newer.
        """
        stamp = workers.first(lambda: self.model_stamp(stage or self.last_stage()))
        return stamp, self.load_model(stamp.stage, device=device, workers=workers)

    def _best_tensors(self, stage: str) -> tuple[Path, dict[str, Tensor]]:
        path = self.best_model_path(stage)
        if not path.exists():
            raise UserError(f"{self.path}: the stage {stage!r} has no model yet; run it first")
        return path, read_tensors(path)

    def text_folder(self) -> Path:
        """Where the run's text is: in the folder that it was trained on, else where its name is looked up.

        Raises UserError if it is in neither.
        """
        name, known = corpus_name(self.facts, self.config), self.facts.get("corpus", {}).get("folder")
        folder = Path(known) if known is not None and os.path.isdir(known) else present_folder(name)
        if folder is None:
            raise UserError(f"{known or name}: not there any more; give the commands its new place with --data")
        return folder

    def check_corpus(self, corpus: Corpus) -> None:
        """Raises UserError if this is not the text that the run was trained on."""
        if difference := self.vocabulary.difference(corpus.vocabulary):
            raise UserError(
                f"{corpus.folder}: has changed since the run {self.path} was started, or is another text: in its "
                f"vocabulary {difference}; restore it, or give the run's own text with --data"
            )
        known = self.facts.get("corpus", {}).get("sha256", {})
        for split, found in corpus.sha256.items():
            if found != (expected := known.get(split, found)):
                raise UserError(
                    f"{corpus.folder}: {split}.txt has changed since the run {self.path} was started "
                    f"(sha256 {found[:12]}, was {expected[:12]}); restore it, or start a new run"
                )

    def log(self, line: str) -> None:
        append_line(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        # To the disk: a power cut must not take a record that lies before a checkpoint.
        append_line(self.path / "metrics.jsonl", json.dumps(record), to_disk=True)

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def forget_metrics_after(self, stage: str, step: int, validations: int) -> None:
        """Drop what a killed process recorded beyond its last checkpoint: it will be recorded again.

        That is beyond update ``step``, and of that update itself the validation that ended its epoch, unless it is
        one of the ``validations`` that the checkpoint knows of.
        """

        def is_known(record: Mapping[str, Any]) -> bool:
            of_the_epoch = record["event"] == "validation" and record["step"] == step
            return bool(record["epoch"] <= validations if of_the_epoch else record["step"] <= step)

        kept = [record for record in self.metrics() if record["stage"] != stage or is_known(record)]
        with explained(self.path / "metrics.jsonl"):
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    @property
    def results(self) -> dict[str, Result]:
        return read_results(self.path)

    def change_config(self, config: Config, *, notice: Callable[[str], None] = SILENT.message) -> "RunFolder":
        """The run with another configuration, which is written; what has changed is logged and said to ``notice``."""
        changes = [f"{name} {old} -> {new}" for name, (old, new) in changed_settings(self.config, config).items()]
        with explained(self.path):
            write_text(self.path / "config.toml", to_whole_toml(config))
        if changes:
            said = f"settings changed: {'; '.join(changes)}"
            self.log(said)
            notice(said)
        return replace(self, config=config)

    def forget_results_of(self, stage: str) -> None:
        """Of its model, whatever they are of it."""
        with writing(self.path):
            self.forget_results(*(name for name, of in self.results.items() if stage in (name, of.get("stage"))))

    def forget_results(self, *names: str) -> None:
        with writing(self.path):
            results = self.results
            kept = {name: result for name, result in results.items() if name not in names}
            if kept != results:
                self._write_results(kept)

    def add_result(
        self,
        name: str,
        result: Mapping[str, Any],
        *,
        of: ModelStamp | None = None,
        replace: bool = False,
        notice: Callable[[str], None] = SILENT.message,
    ) -> bool:
        """Merge into what results.json has under ``name``, or ``replace`` it. Is the result there now?

        One ``of`` a model is left out, and ``notice`` told so, if training has found a better one of its stage since.
        """
        with writing(self.path):
            if of is not None and not self._has_still(of, notice):
                return False
            results = self.results
            earlier = {} if replace else results.get(name, {})
            self._write_results({**results, name: {**earlier, **result}})
        return True

    def write_figures(
        self,
        name: str,
        figures: Mapping[str, Any],
        *,
        of: ModelStamp,
        notice: Callable[[str], None] = SILENT.message,
    ) -> bool:
        """Write the JSON file ``name``, in place of an earlier one; left out and said as by ``add_result``."""
        path = self.path / name
        with writing(self.path), explained(path):
            if not self._has_still(of, notice):
                return False
            write_text(path, json.dumps(figures, indent=1, allow_nan=False) + "\n")
        return True

    def _has_still(self, of: ModelStamp, notice: Callable[[str], None]) -> bool:
        if of == self.model_stamp(of.stage):
            return True
        notice(f"not recorded: {self.path} has a newer model of {of.stage} than the one that was measured")
        return False

    def _write_results(self, results: Mapping[str, Any]) -> None:
        path = self.path / "results.json"
        with explained(path):
            write_text(path, json.dumps(results, indent=2) + "\n")


def load(run: str | os.PathLike[str], *, stage: str | None = None, device: torch.device | str = "cpu") -> TrainedModel:
    """The trained model of a run folder, with its vocabulary: of the last stage, unless ``stage`` says otherwise.

    Raises UserError (a ValueError) naming the file and what is wrong with it.
    """
    folder = RunFolder.open(Path(run))
    return TrainedModel(folder.load_model(stage, device=device), folder.vocabulary)
