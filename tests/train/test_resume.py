"""A run that is killed and resumed ends with the same bits as one that was not: real processes, real signals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest

from highrank.runs import RunFolder
from highrank.runs.tensors import read_tensors

RECIPE = Path(__file__).parent / "tiny.toml"


def command(*arguments: str | Path) -> list[str]:
    # TensorBoard takes seconds to import and has a test of its own.
    return [sys.executable, "-m", "highrank", *map(str, arguments)]


def train_command(out: Path, text: Path, *more: str) -> list[str]:
    # Every update is followed by a checkpoint, so that a kill falls into a save as often as not.
    return command("train", RECIPE, "--data", text, "--out", out, "--checkpoint-minutes", "0", "--device", "cpu", *more)


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


def newest_checkpoint(run: Path) -> str:
    return max((path.name for path in (run / "train").glob("checkpoint-*")), default="")


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    while not any(path.parent.glob(path.name)):
        assert process.poll() is None, "the process ended before it wrote what was waited for"
        time.sleep(0.02)


def figures(run: Path) -> dict[str, Any]:
    """All that must be the same bits: losses of every epoch, and the tensors of the best and of the last model."""
    folder = RunFolder.open(run)
    last = sorted((run / "train").glob("checkpoint-*"))[-1]
    return {
        "metrics": [{k: v for k, v in record.items() if k != "elapsed_s"} for record in folder.metrics()],
        "best": {name: t.numpy().tobytes() for name, t in read_tensors(run / "train" / "model.safetensors").items()},
        "last": {name: t.numpy().tobytes() for name, t in read_tensors(last / "model.safetensors").items()},
        "state": {name: t.numpy().tobytes() for name, t in read_tensors(last / "state.safetensors").items()},
    }


@pytest.fixture(scope="module")
def uninterrupted(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = finish(train_command(out, small_text))
    assert done.returncode == 0, done.stderr
    return out


def same_bits(one: Path, other: Path) -> None:
    ours, theirs = figures(one), figures(other)
    for part in ours:
        assert ours[part] == theirs[part], f"{part} differs"
    assert any(record.get("averaging") for record in ours["metrics"]), "averaging was never on: the test is too easy"


def test_killed_at_random_moments(uninterrupted: Path, small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    moments = random.Random(3)
    for _ in range(4):
        resume = ["--resume"] if out.exists() else []
        process = subprocess.Popen(train_command(out, small_text, *resume), stdout=DEVNULL, stderr=DEVNULL)
        before = newest_checkpoint(out)
        while newest_checkpoint(out) == before:  # a kill counts only if it takes something away
            assert process.poll() is None, "the run was over before it could be killed"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    done = finish(train_command(out, small_text, "--resume"))
    assert done.returncode == 0, done.stderr
    same_bits(out, uninterrupted)
    assert not list(out.rglob(".new-*")), "what a killed process was writing stands in the run folder"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(
    uninterrupted: Path, small_text: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "stopped"
    # No checkpoint on the way: what is resumed is what the signal saved.
    arguments = [*train_command(out, small_text), "--checkpoint-minutes", "1000"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(out / "metrics.jsonl", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
    assert len(list((out / "train").glob("checkpoint-*"))) >= 1
    done = finish(train_command(out, small_text, "--resume"))
    assert done.returncode == 0, done.stderr
    same_bits(out, uninterrupted)


def test_a_second_interrupt_stops_at_once() -> None:
    """The loop below never looks at the request, as an update that takes minutes does not."""
    program = (
        "import time\n"
        "from highrank.train.interruption import stop_on_signal\n"
        "with stop_on_signal() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        if stop.requested:\n"
        "            print('asked', flush=True)\n"
        "            time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for said in ("ready", "asked"):
        assert process.stdout.readline().strip() == said
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT
    process.stdout.close()


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path, small_text: Path) -> None:
    before = figures(uninterrupted)
    done = finish([*train_command(uninterrupted, small_text, "--resume"), "--json"])
    assert done.returncode == 0, done.stderr
    assert figures(uninterrupted) == before
    assert json.loads(done.stdout)["stage"] == "train"


def test_a_signal_in_the_last_validation_is_not_lost(small_text: Path, tmp_path: Path) -> None:
    """The stage is over, but what would follow is not begun."""
    from highrank.data import load_corpus
    from highrank.runs import read_config
    from highrank.train import Interrupted, train_stage

    class Interrupting:
        sent = False

        def progress(self, task: str, done: int, total: int, loss_nats: float) -> None:
            if "validation" in task and not self.sent:  # a second one would end the process
                self.sent = True
                os.kill(os.getpid(), signal.SIGINT)

        def message(self, text: str) -> None: ...

    corpus = load_corpus(small_text)
    config = read_config(RECIPE, overrides=["train.epochs=1"])
    run = RunFolder.create(tmp_path / "run", config, corpus.vocabulary, corpus)
    with pytest.raises(Interrupted):
        train_stage(run, "train", corpus, display=Interrupting())
    assert train_stage(run, "train", corpus, resume=True)["epochs"] == 1


def test_finetuning_resumes_too(uninterrupted: Path, small_text: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, killed):
        shutil.copytree(uninterrupted, out)
    options = ["--data", str(small_text), "--checkpoint-minutes", "0", "--device", "cpu"]
    done = finish(command("finetune", whole, *options))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(command("finetune", killed, *options), stdout=DEVNULL, stderr=DEVNULL, text=True)
    wait_for(killed / "finetune" / "checkpoint-*", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = finish(command("finetune", killed, *options, "--resume"))
    assert done.returncode == 0, done.stderr
    best = [read_tensors(out / "finetune" / "model.safetensors") for out in (whole, killed)]
    assert all(best[0][name].equal(best[1][name]) for name in best[0])
    validations = [
        [
            r["loss_nats"]
            for r in RunFolder.open(out).metrics()
            if r["stage"] == "finetune" and r["event"] == "validation"
        ]
        for out in (whole, killed)
    ]
    assert validations[0] == validations[1]
