"""A trial at work: the commands that its run folder still lacks, what they cost, and the row that comes of them.

What is done is read from the run folder each time, so that a trial goes on wherever it was cut off.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.harness import code_commit, machine
from benchmarks.studies.plan import Trial, settings_of
from benchmarks.studies.record import RESULT_OF
from highrank.errors import UserError
from highrank.evaluate import dynamic_settings, has_dynamic_result
from highrank.files import append_line, remove_folder
from highrank.runs import RunFolder, at_work, parameter_count

__all__ = ["Command", "Place"]

SPLITS = ("valid", "test")


class Command(NamedTuple):
    """The next thing to do: its name, as the costs are kept under it, and its words."""

    name: str
    words: list[str]


@dataclass(frozen=True)
class Place:
    """Where a trial works: OUT/TRIAL is its run folder; beside it lie what its commands said (.log) and what they cost
    (.costs.jsonl)."""

    trial: Trial
    out: Path
    data: str

    @property
    def run(self) -> Path:
        return self.out / self.trial.name

    @property
    def log(self) -> Path:
        return self.out / f"{self.trial.name}.log"

    @property
    def costs(self) -> Path:
        return self.out / f"{self.trial.name}.costs.jsonl"

    def take_up(self) -> str:
        """Make ready what is there of the trial: settings of later stages may have changed. Says what it did, if so.

        A run that was trained with other settings is set aside, under another name.
        """
        if not self.run.exists():
            return ""
        run, wanted = RunFolder.open(self.run), self.trial.config
        if run.config == wanted:
            return ""
        if msgspec.structs.replace(run.config, finetune=wanted.finetune, dynamic=wanted.dynamic) != wanted:
            return f"trained with other settings: set aside as {self._set_aside()}"
        with at_work(self.run):
            later = ("finetune", "dynamic") if run.config.finetune != wanted.finetune else ("dynamic",)
            run.forget_results(*later)
            if "finetune" in later and run.stage_folder("finetune").exists():
                remove_folder(run.stage_folder("finetune"))
            for stage, name in RESULT_OF.items():
                if name in later:
                    self._note(stage, event="forgotten")
            run.change_config(wanted)
        return f"the settings of {' and '.join(later)} have changed"

    def next_command(self) -> Command | None:
        """None: all is done."""
        return next(self._commands(), None)

    def _commands(self) -> Iterator[Command]:
        """What is still to be done, in order; only the first is for now."""
        trial, data = self.trial, ["--data", self.data]
        resume = [*data, "--resume", "--json"]
        run = RunFolder.open(self.run) if self.run.exists() else None
        results = run.results if run is not None else {}
        if "train" not in results:
            settings = [word for override in trial.overrides for word in ("--set", override)]
            yield self._command("train", trial.recipe, "--out", self.run, *resume, *settings)
        if "finetune" in trial.stages and "finetune" not in results:
            yield self._command("finetune", self.run, *resume)
        last = "finetune" if "finetune" in trial.stages else "train"
        for stage in ("train", "finetune"):
            for split in SPLITS:
                if stage in trial.stages and split not in results.get(stage, {}):
                    which = ["--stage", stage, "--split", split]
                    yield self._command("evaluate", self.run, *which, *data, "--json")
        if "dynamic-eval" in trial.stages:
            for split in SPLITS:
                if run is None or not has_dynamic_result(run, last, dynamic_settings(run), split):
                    which = ["--stage", last, "--split", split]
                    yield self._command("dynamic-eval", self.run, *which, *data, "--json")

    def _command(self, name: str, *words: str | Path) -> Command:
        return Command(name, [sys.executable, "-m", "highrank", name, *map(str, words), "--device", "cpu"])

    def began(self, command: Command) -> None:
        """To be called before it is started. ``anew``: nothing of it was there that cost something elsewhere."""
        there = {
            "train": self.run.exists(),
            "finetune": (self.run / "finetune").exists(),
            "dynamic-eval": self.run.exists() and "dynamic" in RunFolder.open(self.run).results,
        }
        self._note(command.name, event="began", anew=not there.get(command.name, False), commit=code_commit())

    def ended(self, command: Command, exit_code: int, cpu_s: float) -> None:
        self._note(command.name, event="ended", exit_code=exit_code, cpu_s=round(cpu_s, 2))

    def cpu_s(self, stage: str) -> float | None:
        """Seconds of processor time of all processes of a stage, those that were cut short too. None: not known,
        because something of it ran elsewhere, or ended without a word (as after SIGKILL)."""
        notes = [note for note in self._notes() if note["name"] == stage]
        forgotten = [place for place, note in enumerate(notes) if note["event"] == "forgotten"]
        notes = notes[forgotten[-1] + 1 :] if forgotten else notes
        begun = [note for note in notes if note["event"] == "began"]
        ended = [note for note in notes if note["event"] == "ended"]
        if not begun or not begun[0]["anew"] or len(begun) != len(ended):
            return None
        return round(sum(note["cpu_s"] for note in ended), 2)

    def row(self) -> dict[str, Any]:
        """What is kept of a finished trial. Nothing in it says where on this machine it ran."""
        run, trial = RunFolder.open(self.run), self.trial
        text = run.facts["corpus"]
        results, train = run.results, run.config.train
        columns_length = text["tokens"]["train"] // train.batch
        commits = [note["commit"] for note in self._notes() if "commit" in note]
        return {
            "variant": trial.variant.name,
            "seed": trial.seed,
            "overrides": list(trial.overrides),
            "parameters": parameter_count(run.config, len(run.vocabulary)),
            "epochs": results["train"]["epochs"],
            "updates": results["train"]["updates"],
            # To within a last segment of one prediction, which an epoch leaves out.
            "tokens": results["train"]["epochs"] * train.batch * (columns_length - 1),
            "validation": [
                {"epoch": record["epoch"], "updates": record["step"], "perplexity": record["perplexity"]}
                for record in run.metrics()
                if (record["stage"], record["event"]) == ("train", "validation")
            ],
            "results": {RESULT_OF[stage]: results[RESULT_OF[stage]] for stage in trial.stages},
            "cpu_s": {stage: self.cpu_s(stage) for stage in trial.stages},
            "commits": list(dict.fromkeys(commits)),  # one or several, in their order; what ran elsewhere has none
            "date": time.strftime("%Y-%m-%d"),
            "versions": run.facts["versions"],
            "device": machine(threads=1),
            "text": {name: text[name] for name in ("name", "as_published")},
            "settings": settings_of(run.config, trial.stages),
        }

    def last_words(self) -> str:
        """The line with which a command gave up."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def _set_aside(self) -> str:
        number = 1
        while (aside := self.out / f"{self.trial.name}.aside-{number}").exists():
            number += 1
        for path in (self.run, self.log, self.costs):
            if path.exists():
                path.rename(aside.with_name(aside.name + path.name.removeprefix(self.trial.name)))
        return aside.name

    def _note(self, name: str, **facts: object) -> None:
        append_line(self.costs, json.dumps({"name": name, **facts}), to_disk=True)

    def _notes(self) -> Sequence[dict[str, Any]]:
        if not self.costs.exists():
            return []
        try:
            return [json.loads(line) for line in self.costs.read_text(encoding="utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise UserError(f"{self.costs}: damaged ({error}); remove it, and the costs count as not known") from error
