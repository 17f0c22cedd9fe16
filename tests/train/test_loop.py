"""What the loop tells of itself: rates; and time and speed, by a clock on which only that passes which a test says."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.processes import RECIPE
from highrank.data import load_corpus
from highrank.data.batches import segment_length
from highrank.progress import SILENT
from highrank.random import derived_seed
from highrank.runs import RunFolder, read_config
from highrank.train import Machine, StageState, loop, train_stage
from highrank.train.checks import training_columns
from highrank.train.recorder import Recorder
from highrank.workers import ALONE
from tests.untrained import make_run


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def takes(self, seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*arguments: Any, **options: Any) -> Any:
            self.seconds += seconds
            return work(*arguments, **options)

        return slowly


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_time_is_that_of_all_that_a_stage_does(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, small_text: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "update", clock.takes(1.0, loop.update))
    monkeypatch.setattr(loop, "evaluate", clock.takes(100.0, loop.evaluate))
    monkeypatch.setattr(loop._Stage, "check_losses", clock.takes(0.25, loop._Stage.check_losses))
    monkeypatch.setattr(StageState, "save", clock.takes(1000.0, StageState.save))
    monkeypatch.setattr(RunFolder, "save_best", clock.takes(10_000.0, RunFolder.save_best))
    corpus = load_corpus(small_text)
    run = RunFolder.create(
        tmp_path / "run", read_config(RECIPE, overrides=["train.epochs=2"]), corpus.vocabulary, corpus
    )
    figures = train_stage(run, "train", corpus)
    assert figures["elapsed_s"] == clock.seconds - 1000, "all but the last checkpoint, which holds it"
    again = train_stage(run, "train", corpus, resume=True)
    assert again["elapsed_s"] == figures["elapsed_s"], "there was nothing left to do"


def test_a_record_has_the_rate_of_its_last_update_and_the_speed_of_updates_alone(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, small_text: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "update", clock.takes(0.5, loop.update))
    monkeypatch.setattr(StageState, "save", clock.takes(1000.0, StageState.save))
    corpus = load_corpus(small_text)
    config = read_config(RECIPE, overrides=["train.epochs=1", "train.bptt=8", "train.schedule=linear"])
    run = RunFolder.create(tmp_path / "run", config, corpus.vocabulary, corpus)
    train_stage(run, "train", corpus, Machine(checkpoint_every_s=0.0))
    [record] = [record for record in run.metrics() if record["event"] == "interval"]
    seed, of = derived_seed(config.train.seed, "train"), config.train
    lengths = [segment_length(seed, step, of.bptt, of.max_length_delta) for step in range(50)]
    assert record["lr"] == of.lr * (1 - sum(lengths[:-1]) / training_columns(config, corpus).length)
    assert record["tokens_per_s"] == pytest.approx(sum(lengths) * of.batch / (50 * 0.5), abs=0.06)


def test_a_tensorboard_that_cannot_be_imported_is_as_none(
    monkeypatch: pytest.MonkeyPatch, small_text: Path, tmp_path: Path
) -> None:
    """Not installed, though a folder of that name may lie where the command is run."""
    monkeypatch.setitem(sys.modules, "highrank.train.events", None)
    run = make_run(tmp_path / "run", load_corpus(small_text))
    Recorder(run, "train", SILENT, ALONE, first_step=1).close()
    assert not (run.path / "tensorboard").exists()
