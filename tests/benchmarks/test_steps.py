"""The benchmarks of steps and of recurrent layers at the smallest sizes, and the operations that a step has."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_dynamic_evaluation, bench_recurrence, bench_train_step, floors, harness
from benchmarks.bench_short_lstm import layer
from benchmarks.processes import RECIPE
from highrank.data import load_corpus
from highrank.data.batches import Columns
from highrank.functional import FLOP_FORMULAS
from highrank.runs import build_model, read_config


def run(
    module: ModuleType, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> dict[str, Any]:
    """What ``python -m`` leaves, of the smallest recipe."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    common = ["--recipe", str(RECIPE), "--data", str(small_text), "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [module.__name__, *common, *arguments])
    assert not module.main()
    [path] = tmp_path.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_training_steps(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train_step, "OURS", {"highrank": ()})
    monkeypatch.setattr(bench_train_step, "OURS_ON_A_CPU", {})
    found = run(bench_train_step, small_text, tmp_path, monkeypatch)
    assert found["failed"] == {}
    assert list(found["times_faster"]) == list(found["share_of_memory"]) == ["highrank"]
    times = {name: each["median_s"] for name, each in found["step"].items()}
    assert found["times_faster"]["highrank"]["textbook"] == times["textbook"] / times["highrank"]
    losses = found["last_loss_nats_by_repeat"]
    assert losses["highrank"] == pytest.approx(losses["textbook"], rel=0.05)


def test_segments_of_dynamic_evaluation(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(bench_dynamic_evaluation, small_text, tmp_path, monkeypatch, "--segments", "2")
    segment = {name: each["median_s"] for name, each in found["segment"].items()}
    assert found["times_faster"] == {"textbook": segment["textbook"] / segment["highrank"]}
    assert min(found["peak_bytes"].values()) > 0


@pytest.mark.parametrize("autocast", [False, True])
def test_the_textbook_learns_by_autocast_too(autocast: bool, small_text: Path) -> None:
    config, corpus = read_config(RECIPE), load_corpus(small_text)
    torch.manual_seed(1)
    model = bench_train_step.textbook_model(config, len(corpus.vocabulary), epsilon=1e-8)
    columns = Columns(corpus.tokens["train"], config.train.batch)
    step = bench_train_step.textbook_step(model, config, columns, autocast=autocast)
    losses = [step().item() for _ in range(6)]
    assert losses[-1] < losses[0]


def test_the_parts_of_a_step_have_the_operations_that_they_are_said_to(small_text: Path) -> None:
    """Of the head and what leads to it; the recurrence's are not counted by PyTorch."""
    config, corpus = read_config(RECIPE, overrides=["train.bptt=200"]), load_corpus(small_text)
    words = len(corpus.vocabulary)
    columns = Columns(corpus.tokens["train"], config.train.batch)
    step = bench_train_step.our_step(build_model(config, words), config, columns)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        step()
    operations = {part.name: part.operations for part in floors.parts(config, words)}
    counted = operations["contexts and priors"] + operations["head: three products"]
    assert counter.get_total_flops() == counted


def test_a_layer_has_a_way_for_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from highrank.models import persistent_lstm_kernels as kernels

    monkeypatch.setattr(kernels, "LAUNCHES", kernels.LAUNCHES)
    monkeypatch.setattr(bench_recurrence, "cannot_run", lambda *_: None)
    launches = kernels.LAUNCHES
    ways = bench_recurrence.with_each_launch(torch.device("cuda"), bench_recurrence.SIZES[0], launches)
    assert len(ways) == len(launches)
    bench_recurrence.many(layer(bench_recurrence.rounded, 2, 3, 4, 5))


def test_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_recurrence", "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        bench_recurrence.main()
    assert "expected a CUDA device that is here, got cpu" in capsys.readouterr().err
