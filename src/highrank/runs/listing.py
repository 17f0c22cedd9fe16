"""The runs in a folder, and how far each has come. Nothing is changed, and nothing is loaded but records."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from highrank.errors import UserError
from highrank.reading import file_size
from highrank.runs.config import Config, read_whole_config
from highrank.runs.lock import is_held
from highrank.runs.records import (
    STAGES,
    Facts,
    Result,
    TemperedResult,
    best_model_path,
    checkpoint_folders,
    corpus_name,
    model_size,
    read_facts,
    read_metrics,
    read_results,
    read_standing,
)

__all__ = [
    "DamagedRun",
    "DynamicFigures",
    "RunSummary",
    "StageFigures",
    "TemperedFigures",
    "dynamic_figures",
    "find_runs",
    "is_run",
    "summarise",
    "tempered_figures",
]

DEPTH = 3
BASIS = ("config.toml", "run.json", "vocabulary.txt")
CHANGING = ("metrics.jsonl", "log.txt", "results.json", *BASIS)


@dataclass(frozen=True)
class TemperedFigures:
    """A stage's best model at a softmax ``temperature``, which was tuned on the split ``tuned_on`` (None: given)."""

    temperature: float
    tuned_on: str | None
    valid_perplexity: float | None
    test_perplexity: float | None

    @property
    def how(self) -> str:
        return f"{self.temperature:g}" if self.tuned_on is None else f"{self.temperature:g}, tuned on {self.tuned_on}"


@dataclass(frozen=True)
class StageFigures:
    """How far a stage has come; None: not known. Perplexities are those of its best model so far.

    ``updates``, ``epoch`` and ``elapsed_s`` are those of the checkpoint that it would go on from; of the last record
    without one, and while the stage is at work if that is later. ``valid_perplexity`` is the exact one where it was
    measured (``valid_is_exact``), else that of the validations in training, which have less text before each word.
    """

    stage: str
    finished: bool
    updates: int | None
    epoch: int | None
    epochs: int
    valid_perplexity: float | None
    valid_is_exact: bool | None
    test_perplexity: float | None
    elapsed_s: float | None
    tempered: TemperedFigures | None


@dataclass(frozen=True)
class DynamicFigures:
    """The dynamic evaluation that is recorded, of the best model of ``stage``."""

    stage: str
    valid_perplexity: float | None
    test_perplexity: float | None
    elapsed_s: float | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """A run whose records could be read. ``changed``: when, in seconds since 1970."""

    path: Path
    config: Config
    facts: Facts
    state: Literal["at work", "finished", "interrupted", "imported"]
    stages: tuple[StageFigures, ...]  # those that were begun; of a run just made, the first
    dynamic: DynamicFigures | None
    parameters: int | None
    changed: float

    @property
    def last(self) -> StageFigures:
        return self.stages[-1]

    @property
    def last_dynamic(self) -> DynamicFigures | None:
        """The dynamic evaluation, if it is of the last stage."""
        return self.dynamic if self.dynamic is not None and self.dynamic.stage == self.last.stage else None

    @property
    def corpus(self) -> str:
        return corpus_name(self.facts, self.config)


@dataclass(frozen=True)
class DamagedRun:
    path: Path
    problem: str


def is_run(folder: Path) -> bool:
    """Does it hold two at least of the three files that every run begins with?"""
    return sum((folder / name).is_file() for name in BASIS) >= 2


def find_runs(folder: Path, *, depth: int = DEPTH) -> list[Path]:
    """The run folders in ``folder``, ``depth`` levels down, by name; or itself, if it is one.

    Raises UserError if there is no such folder. Folders below it that may not be read are passed over.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; give that of your runs")
    return sorted(_runs_in(folder, depth))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            below = [Path(entry) for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_dir()]
        except OSError:
            return
        for each in below:
            yield from _runs_in(each, depth - 1)


def summarise(run: Path) -> RunSummary | DamagedRun:
    """What the records of the run folder ``run`` say. The tensors are not read: ``highrank doctor`` does that."""
    try:
        return _summary(run)
    except (UserError, OSError) as error:
        return DamagedRun(run, str(error).replace(f"{run}{os.sep}", ""))


def _summary(run: Path) -> RunSummary:
    config, facts, results, metrics = (
        read_whole_config(run / "config.toml"),
        read_facts(run),
        read_results(run),
        read_metrics(run, progress_only=True),
    )
    file_size(run / "vocabulary.txt")  # a plain file, or an error
    held = is_held(run)
    begun = {record["stage"] for record in metrics}
    models = [stage for stage in STAGES if best_model_path(run, stage).exists()]
    stages = tuple(
        _stage_figures(run, stage, config, [r for r in metrics if r["stage"] == stage], results.get(stage, {}), held)
        for stage in STAGES
        if stage in begun or stage in models or checkpoint_folders(run / stage)
    ) or (_stage_figures(run, STAGES[0], config, [], {}, held),)
    state: Literal["at work", "finished", "interrupted", "imported"] = "interrupted"
    if held:
        state = "at work"
    elif models and not metrics:
        state = "imported"
    elif stages[-1].finished:
        state = "finished"
    parameters = model_size(best_model_path(run, models[-1])) if models else None
    return RunSummary(
        run,
        config,
        facts,
        state,
        stages,
        dynamic_figures(results["dynamic"]) if "dynamic" in results else None,
        parameters,
        max(_times(run, CHANGING)),
    )


def _stage_figures(
    run: Path, stage: str, config: Config, records: Sequence[dict[str, Any]], result: Result, held: bool
) -> StageFigures:
    finished = "valid_perplexity" in result  # it is recorded at the end; evaluations may come earlier
    valid, test = _both_splits(result)
    is_exact = valid is not None
    if finished and valid is None:
        valid = _number(result["valid_perplexity"])
    elif valid is None:
        validations = [_number(r.get("perplexity")) for r in records if r["event"] == "validation"]
        valid = min((value for value in validations if value is not None), default=None)
    last = records[-1] if records else {}
    saved = read_standing(run, stage)
    if saved is not None and not (held and last.get("step", 0) > saved["step"]):
        last = dict(saved)
    return StageFigures(
        stage,
        finished,
        updates=last.get("step"),
        epoch=last.get("epoch"),
        epochs=config.train.epochs if stage == "train" else config.finetune.epochs,
        valid_perplexity=valid,
        valid_is_exact=None if valid is None else is_exact,
        test_perplexity=test,
        elapsed_s=_number(result.get("elapsed_s") if finished else last.get("elapsed_s")),
        tempered=tempered_figures(result),
    )


def tempered_figures(result: Result) -> TemperedFigures | None:
    """From what results.json has of a stage."""
    found = result.get("tempered")
    if found is None or _number(found["temperature"]) is None:
        return None
    return TemperedFigures(found["temperature"], found.get("tuned_on"), *_both_splits(found))


def dynamic_figures(result: Result) -> DynamicFigures:
    """From what results.json has of the dynamic evaluation."""
    valid, test = _both_splits(result)
    numbers = {name: value for name, value in result.get("settings", {}).items() if _number(value) is not None}
    return DynamicFigures(result.get("stage", "?"), valid, test, _number(result.get("elapsed_s")), numbers)


def _both_splits(result: Result | TemperedResult) -> tuple[float | None, float | None]:
    """Perplexity on validation and test text, None where it was not measured."""
    return _number(result.get("valid", {}).get("perplexity")), _number(result.get("test", {}).get("perplexity"))


def _number(value: object) -> float | None:
    """``value`` if it is a number that can be shown."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _times(run: Path, names: Sequence[str]) -> list[float]:
    """When those of the files that are there were last written; never in the future."""
    now = time.time()
    return [min(now, (run / name).stat().st_mtime) for name in names if (run / name).exists()]
