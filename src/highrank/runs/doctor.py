"""What is wrong with a run folder, and what can be done with it as it is. Nothing in it is changed."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from highrank import __version__
from highrank.data import Vocabulary, load_corpus
from highrank.errors import UserError
from highrank.files import file_sha256, leftovers
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.runs.build import build_model
from highrank.runs.checkpoint import checkpoint_folders, load_checkpoint
from highrank.runs.config import Config, read_whole_config
from highrank.runs.folder import RunFolder
from highrank.runs.lock import holder, is_held
from highrank.runs.records import (
    STAGES,
    Facts,
    Result,
    cannot_go_on,
    has_ended,
    metrics_lines,
    metrics_record,
    read_facts,
    read_results,
)
from highrank.runs.tensors import put_model_tensors, read_tensors

__all__ = ["Ability", "Diagnosis", "Finding", "examine"]

Found = TypeVar("Found")


@dataclass(frozen=True)
class Finding:
    """About one file or folder of the run. A note is worth knowing and keeps nothing from working as it should."""

    place: str
    kind: Literal["ok", "note", "wrong"]
    text: str


@dataclass(frozen=True)
class Ability:
    """What can or cannot be done with the run, why, and the command for it (None: it cannot, or need not)."""

    what: Literal["train", "finetune", "evaluate", "dynamic-eval"]
    possible: bool
    why: str
    command: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    run: Path
    findings: tuple[Finding, ...]
    abilities: tuple[Ability, ...]

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == "wrong"]


@dataclass
class _Stage:
    """What was found of a stage. ``best``: its model can be used. ``positions``: of readable checkpoints."""

    has_best: bool = False
    best: bool = False
    checkpoints: int = 0
    positions: list[Mapping[str, Any]] = field(default_factory=list)  # newest first


def examine(run: Path, *, display: Display = SILENT) -> Diagnosis:
    """Read everything in the run folder ``run`` and say what is wrong with it. Raises UserError if it is none."""
    if not any((run / name).is_file() for name in ("config.toml", "run.json", "vocabulary.txt")):
        raise UserError(f"{run}: not a run folder (expected config.toml, run.json and vocabulary.txt in it)")
    return _Examination(run, display).diagnosis()


class _Examination:
    def __init__(self, run: Path, display: Display) -> None:
        self.run, self.display = run, display
        self.findings: list[Finding] = []

    def diagnosis(self) -> Diagnosis:
        config = self.attempt("config.toml", self.read_config)
        facts = self.attempt("run.json", self.read_facts)
        vocabulary = self.attempt("vocabulary.txt", self.read_vocabulary)
        corpus = None
        if config is not None and facts is not None and vocabulary is not None:
            corpus = self.attempt("corpus", self.check_corpus)
        model = None
        if config is not None and vocabulary is not None:
            with torch.device("meta"):
                model = build_model(config, len(vocabulary))
        stages = {stage: self.check_stage(stage, model) for stage in STAGES}
        records = self.attempt("metrics.jsonl", self.read_metrics) or []
        for stage, found in stages.items():
            self.check_history(stage, found, records)
        self.attempt("results.json", self.read_results)
        self.check_leftovers()
        at_work = self.check_lock()
        return Diagnosis(self.run, tuple(self.findings), tuple(self.abilities(stages, corpus, at_work, records)))

    def say(self, place: str, kind: Literal["ok", "note", "wrong"], text: str) -> None:
        self.findings.append(Finding(place, kind, text))

    def attempt(self, place: str, read: Callable[[], tuple[Found, str]]) -> Found | None:
        """What ``read`` returns, noted with its description; None, noted as wrong, where it raises UserError."""
        self.display.progress(f"examining {place}", len(self.findings), None, unit="findings")
        try:
            found, text = read()
        except (UserError, OSError) as error:
            said = " ".join(str(error).split()).replace(f"{self.run / place}: ", "").replace(f"{self.run}/", "")
            self.say(place, "wrong", said)
            return None
        self.say(place, "ok", text)
        return found

    def read_config(self) -> tuple[Config, str]:
        config = read_whole_config(self.run / "config.toml")
        return config, f"{config.model.head}, corpus {config.data.corpus}"

    def read_facts(self) -> tuple[Facts, str]:
        facts = read_facts(self.run)
        if not isinstance(facts.get("versions"), dict):
            raise UserError("does not name the versions that made the run")
        present = {"highrank": __version__, "torch": torch.__version__}
        for name, now in present.items():
            if (then := facts["versions"].get(name)) != now:
                self.say(
                    "run.json",
                    "note",
                    f"begun with {name} {then}, here is {now}: what is resumed may differ in its bits",
                )
        return facts, f"begun {facts.get('created', 'at an unknown time')}"

    def read_vocabulary(self) -> tuple[Vocabulary, str]:
        vocabulary = Vocabulary.load(self.run / "vocabulary.txt")
        if not len(vocabulary):
            raise UserError("is empty")
        return vocabulary, f"{len(vocabulary):,} words"

    def check_corpus(self) -> tuple[Path, str]:
        """The folder of the run's text, found to be what it was."""
        run = RunFolder.open(self.run)
        folder = run.text_folder()
        run.check_corpus(load_corpus(folder, name=run.config.data.corpus, display=self.display))
        return folder, f"{folder}: the text of the run"

    def check_stage(self, stage: str, model: LanguageModel | None) -> _Stage:
        found, folder = _Stage(), self.run / stage
        best = folder / "model.safetensors"
        found.has_best = best.exists()
        if found.has_best:
            found.best = self.attempt(f"{stage}/{best.name}", partial(_best_model, best, model)) is not None
        for path in checkpoint_folders(folder):
            found.checkpoints += 1
            position = self.attempt(f"{stage}/{path.name}", partial(_position, path, model))
            if position is not None:
                found.positions.append(position)
        for path in sorted(folder.glob("gradient-statistics-*.safetensors")):
            try:
                read_tensors(path)
            except UserError:
                self.say(f"{stage}/{path.name}", "note", "damaged; dynamic evaluation computes it again")
        if found.positions and found.positions[0]["best_loss"] is not None and not found.has_best:
            self.say(f"{stage}/{best.name}", "wrong", "is missing: a model was the best so far and is not here")
        source = self.run / "train" / "model.safetensors"
        for position in found.positions[:1]:
            begun = position["started_from"]
            if begun and source.is_file() and begun != file_sha256(source):
                self.say(stage, "wrong", f"began from another trained model than train/{source.name} is now")
        return found

    def read_metrics(self) -> tuple[list[dict[str, Any]], str]:
        records = []
        for number, line in enumerate(metrics_lines(self.run), 1):
            if (record := metrics_record(line)) is not None:
                records.append(record)
            elif line.endswith(b"\n"):
                self.say("metrics.jsonl", "wrong", f"line {number} is not a record")
            else:
                self.say("metrics.jsonl", "note", "its last record is cut short; --resume writes it anew")
        return records, f"{len(records)} records"

    def check_history(self, stage: str, found: _Stage, records: list[dict[str, Any]]) -> None:
        """Of every validation that the newest checkpoint knows of there is a record."""
        for position in found.positions[:1]:
            mine = [r for r in records if r["stage"] == stage and r["event"] == "validation"]
            recorded = sum(0 < r["step"] <= position["step"] for r in mine)
            if recorded < len(position["history"]):
                validated = len(position["history"])
                self.say("metrics.jsonl", "wrong", f"{stage} has validated {validated} times, recorded are {recorded}")

    def read_results(self) -> tuple[dict[str, Result], str]:
        if not (self.run / "results.json").exists():
            return {}, "none yet"
        try:
            results = read_results(self.run)
        except UserError as error:
            raise UserError(f"{error}; remove it, and evaluate again") from error
        return results, f"of {', '.join(results) or 'nothing'}"

    def check_leftovers(self) -> None:
        for path in leftovers(self.run, *(self.run / stage for stage in STAGES)):
            text = "being written, or left by a process that was killed; the next start removes it"
            self.say(str(path.relative_to(self.run)), "note", text)

    def check_lock(self) -> str | None:
        """Who is at work on the run, if someone is."""
        if not is_held(self.run):
            return None
        who = holder(self.run) or "a process"
        self.say(".lock", "note", f"{who} is at work on the run")
        return who

    def abilities(
        self, stages: Mapping[str, _Stage], corpus: Path | None, at_work: str | None, records: list[dict[str, Any]]
    ) -> list[Ability]:
        basis = [f"{f.place} is wrong" for f in self.findings if f.kind == "wrong" and f.place in BASIS]
        obstacle = basis[0] if basis else None
        stop = f"{at_work} is at work on it" if at_work else obstacle
        data = ["--data", str(corpus)]
        train, tune = stages["train"], stages["finetune"]
        resume = [str(self.run / "config.toml"), *data, "--out", str(self.run), "--resume"]
        begun = tune.checkpoints > 0 or tune.has_best
        finetune = [str(self.run), *data, *(["--resume"] if begun else [])]
        return [
            _training(train, stop or self.without_checkpoints("train", records), ["train", *resume]),
            self.finetuning(
                train, tune, stop or self.without_checkpoints("finetune", records), ["finetune", *finetune]
            ),
            *(self.evaluation(what, stages, obstacle, data) for what in ("evaluate", "dynamic-eval")),
        ]

    def without_checkpoints(self, stage: str, records: list[dict[str, Any]]) -> str | None:
        """Why a stage that has none cannot go on."""
        if checkpoint_folders(self.run / stage):
            return None
        try:
            return "it has come to its end" if has_ended(self.run, stage) else cannot_go_on(self.run, stage, records)
        except UserError:  # of results.json, which is said
            return None

    def finetuning(self, train: _Stage, tune: _Stage, stop: str | None, command: list[str]) -> Ability:
        if stop is None and not train.best:
            stop = f"the best trained model {'cannot be used' if train.has_best else 'is not there yet'}"
        if stop is None and any(finding.place == "finetune" for finding in self.findings):
            stop = "it began from another trained model; remove the folder finetune to fine-tune anew"
        return _training(tune, stop, command)

    def evaluation(
        self, what: Literal["evaluate", "dynamic-eval"], stages: Mapping[str, _Stage], stop: str | None, data: list[str]
    ) -> Ability:
        if stop is not None:
            return Ability(what, False, stop)
        last = next((stage for stage in reversed(STAGES) if stages[stage].has_best), None)
        usable = next((stage for stage in reversed(STAGES) if stages[stage].best), None)
        if usable is None:
            return Ability(what, False, "no model can be used" if last else "there is no trained model yet")
        choice = [] if usable == last else ["--stage", usable]
        why = f"the best model of {usable}" + (f"; that of {last} cannot be used" if choice else "")
        return Ability(what, True, why, _command(what, str(self.run), *data, *choice))


BASIS = ("config.toml", "run.json", "vocabulary.txt", "corpus")


def _training(stage: _Stage, stop: str | None, command: list[str]) -> Ability:
    """``stop``: what keeps the stage from beginning or going on, whatever its checkpoints say."""
    what: Literal["train", "finetune"] = "train" if command[0] == "train" else "finetune"
    if stop is not None:
        return Ability(what, False, stop)
    if stage.checkpoints and not stage.positions:
        return Ability(what, False, "no checkpoint can be used")
    if not stage.positions:
        return Ability(what, True, "from the start: there is no checkpoint", _command(*command))
    position = stage.positions[0]
    if position["best_loss"] is not None and not stage.best:
        return Ability(what, False, "its best model so far, which no checkpoint has a copy of, cannot be used")
    if position["finished"]:
        return Ability(what, False, f"it has come to its end in epoch {position['epoch']}, update {position['step']}")
    return Ability(what, True, f"from epoch {position['epoch']}, update {position['step']} on", _command(*command))


def _command(*words: str) -> str:
    return shlex.join(["highrank", *words])


def _position(path: Path, model: LanguageModel | None) -> tuple[Mapping[str, Any], str]:
    """Where a checkpoint stands. Raises UserError if anything in it is damaged or does not fit."""
    checkpoint = load_checkpoint(path)
    _check_fit(checkpoint.model, model, path)
    _check_finite(checkpoint.tensors)
    position = checkpoint.state.get("position")
    types = {"epoch": int, "step": int, "finished": bool, "history": list, "started_from": str}
    if not isinstance(position, dict) or any(type(position.get(name)) is not kind for name, kind in types.items()):
        raise UserError("state.json does not say where training stands")
    if not (position.get("best_loss", 0) is None or type(position.get("best_loss")) is float):
        raise UserError("state.json does not say how good the best model is")
    number = re.search(r"\d+", path.name)
    if number is None or int(number[0]) != position["step"]:
        raise UserError(f"is of update {position['step']}, which is not what its name says")
    return position, f"epoch {position['epoch']}, update {position['step']}" + ", the end" * position["finished"]


def _best_model(path: Path, model: LanguageModel | None) -> tuple[Path, str]:
    _check_fit(read_tensors(path), model, path)
    return path, "the best model"


def _check_fit(tensors: Mapping[str, Tensor], model: LanguageModel | None, source: Path) -> None:
    """Raises UserError unless the tensors are those of the ``model``, on "meta", that the run's configuration and
    vocabulary ask for (None: not known), and finite."""
    if model is None:
        _check_finite(tensors)
    else:
        put_model_tensors(model, tensors, source=source)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{name} holds numbers that are infinite or none")
