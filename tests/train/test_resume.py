"""A run that is resumed ends with the same bits as one that was not stopped. Kills and other faults: test_faults.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest
import torch

from benchmarks.processes import RECIPE, Setting, command, finish, here, one_line, train_arguments, train_command
from benchmarks.same_bits import checksums, figures
from highrank.data import load_corpus
from highrank.data.batches import segment_length
from highrank.errors import UserError
from highrank.random import derived_seed
from highrank.runs import RunFolder, build_model, read_config
from highrank.runs.checkpoint import checkpoint_folders, load_checkpoint
from highrank.runs.doctor import examine
from highrank.runs.tensors import read_tensors
from highrank.train import Interrupted, Machine, Position, StageState, finetune, train, train_stage
from highrank.train.optimizer import SGD
from tests.telling import Telling


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    while not any(path.parent.glob(path.name)):
        assert process.poll() is None, "the process ended before it wrote what was waited for"
        time.sleep(0.02)


def test_a_second_interrupt_stops_at_once() -> None:
    """The loop below never looks at the request, as an update that takes minutes does not."""
    program = (
        "import time\n"
        "from highrank.train.interruption import stop_on_signal\n"
        "with stop_on_signal() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        if stop.signal_number:\n"
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


def test_resuming_a_finished_run_changes_nothing(setting: Setting, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(setting.reference, run)
    before = checksums(run)
    done = finish([*train_command(run, setting.text, "--resume"), "--json"])
    assert done.returncode == 0, done.stderr
    assert "resuming train" not in done.stderr
    assert checksums(run) == before
    assert json.loads(done.stdout)["stage"] == "train"


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_a_stage_that_has_begun_is_not_begun_anew_unasked(stage: str, setting: Setting, tmp_path: Path) -> None:
    path = shutil.copytree(setting.reference, tmp_path / "run")
    if stage == "finetune":
        shutil.copytree(path / "train", path / "finetune")
    before = checksums(path)
    run, where = RunFolder.open(path), Machine(torch.device("cpu"))
    with pytest.raises(UserError, match=f"{path / stage}: exists already"):
        {"train": train, "finetune": finetune}[stage](run, load_corpus(setting.text), where)
    assert checksums(path) == before


def test_removed_checkpoints_lose_nothing(setting: Setting, tmp_path: Path) -> None:
    """They may be removed to save space once a stage has ended; before, nothing is to be begun anew unasked."""
    run = shutil.copytree(setting.reference, tmp_path / "run")
    for checkpoint in checkpoint_folders(run / "train"):
        shutil.rmtree(checkpoint)
    before = {path: path.read_bytes() for path in (run / "metrics.jsonl", run / "train" / "model.safetensors")}
    done = here(*train_arguments(run, setting.text, "--resume"), "--json")
    assert done.returncode == 0, done.stderr
    said, recorded = json.loads(done.stdout), RunFolder.open(run).results["train"]
    assert {"epochs", "updates", "best_epoch", "valid_loss_nats", "valid_perplexity", "elapsed_s"} < set(said)
    assert {name: recorded[name] for name in said if name in recorded} == {
        name: value for name, value in said.items() if name not in ("run", "stage")
    }
    assert examine(run).abilities[0].why == "it has come to its end"
    (run / "results.json").unlink()  # as if stopped on the way
    assert not examine(run).abilities[0].possible
    one_line(here(*train_arguments(run, setting.text, "--resume")), "no checkpoint is there", f"remove {run / 'train'}")
    assert {path: path.read_bytes() for path in before} == before


def test_a_signal_in_the_last_validation_is_not_lost(small_text: Path, tmp_path: Path) -> None:
    """The stage is over, but what would follow is not begun."""

    class Interrupting(Telling):
        sent = False

        def progress(self, task: str, *done: Any, **how: Any) -> None:
            if "validation" in task and not self.sent:  # a second one would end the process
                self.sent = True
                os.kill(os.getpid(), signal.SIGINT)

    corpus = load_corpus(small_text)
    config = read_config(RECIPE, overrides=["train.epochs=1"])
    run = RunFolder.create(tmp_path / "run", config, corpus.vocabulary, corpus)
    with pytest.raises(Interrupted):
        train_stage(run, "train", corpus, Machine(display=Interrupting()))
    assert train_stage(run, "train", corpus, resume=True)["epochs"] == 1


@pytest.mark.parametrize(("optimizer", "precision"), [("sgd", "float32"), ("adamw", "bfloat16")])
def test_other_optimizers_rates_averages_and_precisions_resume_too(
    optimizer: str, precision: str, small_text: Path, tmp_path: Path
) -> None:
    class Interrupting(Telling):
        seen = 0

        def progress(self, task: str, *done: Any, **how: Any) -> None:
            self.seen += task == "train: epoch 2/2"
            if self.seen == 2:  # within the epoch, between two updates
                os.kill(os.getpid(), signal.SIGINT)

    corpus = load_corpus(small_text)
    rates = ["train.schedule=cosine", "train.warmup=0.2", f"train.lr={0.01 if optimizer == 'adamw' else 20}"]
    average = ["train.average_from=1", "train.average_power=3", "train.epochs=2"]
    other = [f"train.optimizer={optimizer}", "train.partial_shuffle=true"]
    other += [f"train.precision={precision}", "model.embedding_init=log-counts", "train.past_decode=0.1"]
    config = read_config(RECIPE, overrides=[*rates, *average, *other])
    whole, cut = (RunFolder.create(tmp_path / name, config, corpus.vocabulary, corpus) for name in ("whole", "cut"))
    train_stage(whole, "train", corpus)
    with pytest.raises(Interrupted):
        train_stage(cut, "train", corpus, Machine(checkpoint_every_s=0.0, display=Interrupting()))
    train_stage(cut, "train", corpus, resume=True)
    assert figures(whole.path) == figures(cut.path)


def test_a_checkpoint_of_an_earlier_version_is_resumed_without_what_was_added_since(setting: Setting) -> None:
    run = RunFolder.open(setting.reference)
    checkpoint = load_checkpoint(checkpoint_folders(run.stage_folder("train"))[0])
    saved = checkpoint.state["position"]

    def restored(position: dict[str, Any]) -> Position:
        state = StageState(build_model(run.config, len(run.vocabulary)), run.config)
        state.restore(checkpoint._replace(state={"position": position}))
        return state.position

    def without(name: str) -> dict[str, Any]:
        return {key: value for key, value in saved.items() if key != name}

    assert saved["interval_steps"] > 0
    at_the_speed_so_far = saved["elapsed_s"] * saved["interval_steps"] / saved["step"]
    assert asdict(restored(without("interval_s"))) == {**saved, "interval_s": at_the_speed_so_far}
    assert restored(without("lr")).lr is None
    for position in (without("averaged"), without("step"), {**saved, "surprise": 1}):
        with pytest.raises(UserError, match="another version"):
            restored(position)


@pytest.mark.parametrize("changed", [False, True])
def test_another_rate_holds_from_the_first_update_on(
    changed: bool, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while averaging, where an update has the rate that was meant for the one before."""
    path = setting.copy(f"other-rate-{changed}", finished=False)
    run, rates = RunFolder.open(path), []
    saved = load_checkpoint(checkpoint_folders(path / "train")[0]).state["position"]
    assert saved["averaging"]
    if changed:
        run = run.change_config(read_config(RECIPE, overrides=["train.lr=7"]))

    def step(self: SGD, lr: float) -> None:
        rates.append(lr)

    monkeypatch.setattr(SGD, "step", step)
    train_stage(run, "train", load_corpus(setting.text), resume=True)
    of = run.config.train
    length = segment_length(derived_seed(of.seed, "train"), saved["step"], of.bptt, of.max_length_delta)
    assert rates[0] == (7 * length / of.bptt if changed else saved["late_lr"])


def test_finetuning_resumes_too(setting: Setting, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, killed):
        shutil.copytree(setting.reference, out)
    options = ["--data", str(setting.text), "--checkpoint-minutes", "0", "--device", "cpu"]
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
