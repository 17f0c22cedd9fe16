"""The results of a study: one JSON file, written whole whenever a row or a time is added."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.studies.plan import Study, Trial, settings_of
from highrank.errors import UserError
from highrank.files import explained, write_text
from highrank.reading import read_json
from highrank.runs import parse_config

__all__ = ["RESULT_OF", "Record"]

# Under what name results.json of a run has the figures of a stage.
RESULT_OF = {"train": "train", "finetune": "finetune", "dynamic-eval": "dynamic"}


class RowHead(msgspec.Struct):
    """What has to be in a row for it to be known again."""

    variant: str
    seed: int
    settings: dict[str, Any]
    results: dict[str, Any]


class TimesHead(msgspec.Struct):
    """What has to be in the times of a variant for hours to follow from them."""

    overrides: list[str]
    expected_cpu_s: dict[str, float]


class Content(msgspec.Struct):
    rows: list[RowHead] = []
    times: dict[str, TimesHead] = {}


@dataclass(frozen=True)
class Record:
    """``path`` has ``rows``, one for a finished trial, and ``times``, one entry for a timed variant.

    It is read anew each time: what another process has added stays.
    """

    path: Path
    study: Study

    def read(self) -> dict[str, Any]:
        """Empty where there is no file yet. Raises UserError if it is damaged."""
        if not self.path.exists():
            return {"rows": [], "times": {}}
        content = read_json(self.path)
        try:
            msgspec.convert(content, Content)
        except msgspec.ValidationError as error:
            raise UserError(f"{self.path}: damaged: {' '.join(str(error).split())}") from error
        return {"rows": content.get("rows", []), "times": content.get("times", {})}

    def row(self, trial: Trial) -> dict[str, Any] | None:
        """That of a trial, if it has all stages, with the settings that the study has now."""
        for row in self.read()["rows"]:
            if (row["variant"], row["seed"]) == (trial.variant.name, trial.seed):
                whole = all(RESULT_OF[stage] in row["results"] for stage in trial.stages)
                return row if whole and _same_settings(row, trial) else None
        return None

    def rows(self) -> list[dict[str, Any]]:
        """Of the study as it is now, in its order."""
        return [row for trial in self.study.trials() if (row := self.row(trial)) is not None]

    def expected_cpu_s(self, trial: Trial) -> float | None:
        """Of all stages, from the measured times of the variant with these settings; None where it was not timed."""
        times = self.read()["times"].get(trial.variant.name)
        if times is None or times["overrides"] != list(trial.overrides[:-1]):
            return None
        seconds = [times["expected_cpu_s"].get(stage) for stage in trial.stages]
        return None if None in seconds else sum(seconds)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """In place of one of the same variant and seed."""
        content = self.read()
        mine = (row["variant"], row["seed"])
        others = [other for other in content["rows"] if (other["variant"], other["seed"]) != mine]
        self._write(content | {"rows": self._in_order([*others, row])})

    def add_times(self, times: Mapping[str, Any]) -> None:
        content = self.read()
        self._write(content | {"times": {**content["times"], **times}})

    def _in_order(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """That of the study; what the study no longer has stays, at the end."""
        places = {(trial.variant.name, trial.seed): place for place, trial in enumerate(self.study.trials())}
        return sorted(rows, key=lambda row: places.get((row["variant"], row["seed"]), len(places)))

    def _write(self, content: Mapping[str, Any]) -> None:
        from benchmarks.harness import code_commit, machine, versions  # PyTorch, which reading does not need

        about = {
            "command": self.study.command,
            "commit": code_commit(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
            "device": machine(threads=1),
        }
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"about": about, **content}, indent=1, allow_nan=False) + "\n")


def _same_settings(row: Mapping[str, Any], trial: Trial) -> bool:
    try:
        had = parse_config(row["settings"], source="row")
    except UserError:  # of another version
        return False
    return settings_of(had, trial.stages) == settings_of(trial.config, trial.stages)
