"""A run survives what happens to processes and disks, to the same bits: benchmarks/faults.py in small numbers."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import faults
from benchmarks.disks import Unavailable
from benchmarks.processes import Setting, here, start, train_arguments, train_command
from benchmarks.same_bits import compare
from highrank.runs import RunFolder
from highrank.runs.checkpoint import checkpoint_folders
from highrank.train import loop
from highrank.train.interruption import stop_on_signal


@contextmanager
def where_possible() -> Iterator[None]:
    try:
        yield
    except Unavailable as reason:
        pytest.skip(str(reason))


def nothing_is_lost(result: dict[str, Any]) -> None:
    assert result["runs_compared"] > 0
    assert result["tensors_compared"] > 40 * result["runs_compared"], "the comparison is too easy"
    assert result["different"] == []
    assert result["bits_different"] == 0


def test_killed_five_times(setting: Setting) -> None:
    result = faults.killed(setting, 5, seed=3)
    assert result["kills"] == 5
    assert result["kills_during_a_save"] >= 3, "three of five are aimed at a save"
    nothing_is_lost(result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on(setting: Setting, number: signal.Signals) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may have been started by nohup
    try:
        nothing_is_lost(faults.stopped(setting, number))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_started_by_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal_number == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # a closed terminal says it twice: the shell and the kernel do
        assert stop.signal_number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nobody_has_to_listen(setting: Setting, tmp_path: Path) -> None:
    process = start(train_command(tmp_path / "run", setting.text))
    assert process.stderr is not None
    process.stderr.close()  # as where the command's "| tee" has died
    assert process.wait(300) == 0
    assert compare(tmp_path / "run", setting.reference).different == []


def test_a_full_disk(setting: Setting) -> None:
    with where_possible():
        nothing_is_lost(faults.full_disk(setting))


def test_a_read_only_folder(setting: Setting) -> None:
    with where_possible():
        nothing_is_lost(faults.read_only_folder(setting))


def test_two_processes_on_one_folder(setting: Setting) -> None:
    nothing_is_lost(faults.second_process(setting))


def test_files_cut_short(setting: Setting) -> None:
    result = faults.cut_short(setting, every=12)
    assert result["cuts"] >= 20
    assert min(result["passed_over_or_made_again"], result["refused"]) >= 5
    nothing_is_lost(result)


def test_a_difference_is_found(setting: Setting) -> None:
    """The comparison itself: one bit of one tensor, one digit of one loss."""
    run = setting.copy("different", finished=True)
    assert compare(run, setting.reference).bits_different == 0
    model = checkpoint_folders(run / "train")[0] / "model.safetensors"
    tensors = load_file(model)
    name = sorted(tensors)[0]
    tensors[name].reshape(-1).view(np.uint32)[0] ^= 1
    save_file(tensors, model)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | {"loss_nats": 1.0})]) + "\n")
    found = compare(run, setting.reference)
    assert f"different: last {name}" in found.different
    assert sum("metrics" in different for different in found.different) == 1
    assert found.bits_different > 1


class Killed(BaseException):
    """What no code of the program catches."""


def test_a_kill_between_a_validation_and_the_checkpoint_after_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before is of the same update: what was recorded since is recorded once in the end."""

    def decide(stage: loop._Stage, loss: float) -> None:
        if stage.state.position.epoch == 2:
            raise Killed
        decide_as_it_does(stage, loss)

    path, decide_as_it_does = setting.folder / "validated", loop._Stage.decide
    with monkeypatch.context() as patch:
        patch.setattr(loop._Stage, "decide", decide)
        with pytest.raises(Killed):
            here(*train_arguments(path, setting.text))
    known = json.loads((checkpoint_folders(path / "train")[0] / "state.json").read_text())["position"]
    recorded = [record["step"] for record in RunFolder.open(path).metrics() if record["event"] == "validation"]
    assert (len(known["history"]), len(recorded), known["step"]) == (1, 2, recorded[-1])
    nothing_is_lost(setting.resumed(path).as_result())


def test_a_kill_after_the_validation_that_fine_tuning_starts_with(setting: Setting, tmp_path: Path) -> None:
    run = RunFolder.open(setting.copy("validated-finetune", finished=True))
    tune = ["finetune", run.path, "--data", setting.text, "--device", "cpu", "--checkpoint-minutes", "0"]
    assert here(*tune).returncode == 0
    whole = [record for record in run.metrics() if record["stage"] == "finetune"]
    for path in checkpoint_folders(run.path / "finetune"):
        path.rename(tmp_path / path.name)
    run.forget_metrics_after("finetune", 0, 1)
    run.forget_results_of("finetune")
    assert [record["step"] for record in run.metrics() if record["stage"] == "finetune"] == [0]
    assert here(*tune, "--resume").returncode == 0
    again = [record for record in run.metrics() if record["stage"] == "finetune"]
    assert [(r["step"], r["loss_nats"]) for r in again] == [(r["step"], r["loss_nats"]) for r in whole]


def test_the_end_of_a_run_comes_again_after_its_last_save_was_lost(setting: Setting) -> None:
    run = setting.copy("last-save-lost", finished=False)
    assert here(*train_arguments(run, setting.text)).returncode == 1, "without --resume it exists already"
    nothing_is_lost(setting.resumed(run).as_result())


@pytest.mark.slow
def test_killed_fifty_times(setting: Setting) -> None:
    result = faults.killed(setting, 50, seed=1)
    assert result["kills"] == 50
    assert result["kills_during_a_save"] >= 25, "every other one is aimed at a save"
    nothing_is_lost(result)
    nothing_is_lost(faults.cut_short(setting))
