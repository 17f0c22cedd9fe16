"""The loss's benchmarks at sizes that take seconds, and the page that is written from their results."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch

from benchmarks import (
    bench_filtered_step,
    bench_label_smoothing,
    bench_loss_growth,
    bench_loss_memory,
    bench_loss_speed,
    bench_posterior_filter,
    bench_small_calls,
    harness,
    losses,
)
from benchmarks.losses import Size
from docs.generate import results
from docs.generate.loss import loss_figures
from docs.generate.loss_plots import loss_plots
from highrank.data import load_corpus
from tests.untrained import make_run

SIZES = {"penn": Size(6, 3, 5, 40), "one-softmax": Size(9, 1, 5, 40)}


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this test alone."""
    for module in (harness, results):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What ``python -m`` leaves."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    assert (module.main() or 0) == code
    name = module.__name__.removeprefix("benchmarks.")
    [path] = harness.RESULTS.glob(f"{name}*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def small_product(device: str, dtype: torch.dtype, rows: int) -> Callable[[], object]:
    return LARGE_PRODUCT(device, dtype, 64)


LARGE_PRODUCT = bench_loss_speed.large_product


def test_both_dtypes_are_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CPU_SIZES", SIZES)
    monkeypatch.setattr(bench_loss_speed, "large_product", small_product)
    speed = run(bench_loss_speed, monkeypatch, "--device", "cpu", "--repeats", "3")
    memory = run(bench_loss_memory, monkeypatch, "--device", "cpu")
    keys = [f"{name}.{dtype}" for name in SIZES for dtype in ("float32", "bfloat16")]
    assert list(speed["results"]) == list(memory["results"]) == keys

    text = loss_figures()
    for name, dtype in (key.split(".") for key in keys):
        result = speed["results"][f"{name}.{dtype}"]
        ours = result["times"]["highrank chunked"]["median_s"]
        [part] = [part for part in text.split("\n**") if part.startswith(f"{name}**, {dtype}: N = ")]
        assert f"| highrank chunked | {1000 * ours:,.1f} |" in part
        assert f"| {result['times_faster']['textbook']:.2f} |" in part
    [across] = [part for part in text.split("\n**") if part.startswith("highrank under autocast** ")]
    for name in SIZES:
        times = speed["results"][f"{name}.float32"]["times"]
        ours, *others = (times[f"{whose}bfloat16 autocast"] for whose in ("highrank, ", "textbook, "))
        ratios = [each["median_s"] / ours["median_s"] for each in (times["textbook"], *others)]
        assert f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} |" in across
    assert "`bench_loss_speed` on a GPU: not measured yet." in text


def test_small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--device", "cpu", "--tokens", "4", "--classes", "10", "2000", "--calls", "2", "--repeats", "2")
    rows = run(bench_small_calls, monkeypatch, *few)["sizes"]
    assert [row["size"]["classes"] for row in rows] == [10, 2000]
    text = loss_figures()
    for row in rows:
        ours, textbook = (row["call"][name]["median_s"] for name in ("highrank chunked", "textbook"))
        assert row["times_faster"] == textbook / ours
        assert f"| 4 | 4 | 64 | {row['size']['classes']:,} | {1000 * ours:.2f} | {1000 * textbook:.2f} |" in text


def test_a_loss_of_ours_that_fails_leaves_the_others_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "IMPLEMENTATIONS", ("chunked",))
    monkeypatch.setattr(losses, "ours", lambda *_: out_of_memory)
    monkeypatch.setattr(bench_loss_speed, "large_product", small_product)
    small = ("--device", "cpu", "--sizes", "6,3,5,40")
    few = ("--device", "cpu", "--tokens", "4", "--classes", "10", "--calls", "1", "--repeats", "1")
    grown = ("--device", "cpu", "--size", "8,2,8,40", "--repeats", "1")
    speed = run(bench_loss_speed, monkeypatch, *small, "--repeats", "1", code=1)
    memory = run(bench_loss_memory, monkeypatch, *small, code=1)
    assert list(run(bench_loss_growth, monkeypatch, *grown, code=1)["results"]) == ["textbook"]
    [row] = run(bench_small_calls, monkeypatch, *few, code=1)["sizes"]
    assert row["failed"]["highrank chunked"] == "OutOfMemoryError"
    result = speed["results"]["6,3,5,40.float32"]
    assert result["times_faster"] == {}
    assert {"textbook", "three products"} < result["times"].keys()
    assert isinstance(memory["results"]["6,3,5,40.bfloat16"]["working_bytes"]["textbook"], int)
    text = loss_figures()
    assert text.count("| highrank chunked | OutOfMemoryError |") == 3  # two tables of time, one of memory
    [(name, plot)] = loss_plots().items()
    assert f"(figures/{name})" in text
    assert "candidate: textbook" in plot


def test_smoothed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_label_smoothing, "textbook", out_of_memory)
    sizes = ("--device", "cpu", "--sizes", "6,3,5,40", "9,1,5,40", "--repeats", "2")
    results = run(bench_label_smoothing, monkeypatch, *sizes)["results"]
    assert [list(result["times"]) for result in results.values()] == [
        ["plain labels", "label_smoothing", "mixture_log_prob"],
        ["plain labels", "label_smoothing", "mixture_log_prob", "cross_entropy(linear)"],
    ]
    text = loss_figures()
    assert text.count("| textbook | OutOfMemoryError |") == 2
    plain, smoothed = (results["6,3,5,40"]["times"][name]["median_s"] for name in ("plain labels", "label_smoothing"))
    assert f"| {smoothed / plain:.2f} |" in text


@pytest.mark.parametrize("components", [1, 3])
def test_every_way_to_smooth_labels_has_the_same_loss(components: int) -> None:
    size = Size(6, components, 5, 40)
    case = losses.make_case(size)
    found = {name: loss(case).item() for name, loss in bench_label_smoothing.losses(size).items()}
    plain = found.pop("plain labels")
    assert list(found.values()) == pytest.approx([found["label_smoothing"]] * len(found), rel=1e-5)
    assert found["label_smoothing"] != pytest.approx(plain, rel=1e-5)


def out_of_memory(case: losses.Case) -> torch.Tensor:
    raise torch.OutOfMemoryError


def test_the_filter_over_an_epoch(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = load_corpus(small_text)
    folder = make_run(tmp_path / "k3", corpus).path
    common = (str(folder), "--data", str(small_text), "--heldout-tokens", "200", "--thresholds", "1e-3")
    short = run(bench_posterior_filter, monkeypatch, *common, "--updates", "2")["results"]["k3"]
    assert short["updates"] == 2
    assert not short["whole_epoch"]
    assert "over a whole epoch (`--updates epoch`) has not been measured" in loss_figures()

    whole = run(bench_posterior_filter, monkeypatch, *common, "--updates", "epoch")["results"]["k3"]
    assert list(whole["by_min_posterior"]) == ["0.0", "0.001"]
    assert whole["whole_epoch"]
    config = make_run(tmp_path / "again", corpus).config.train
    columns = len(corpus.tokens["train"]) // config.batch
    assert whole["updates"] == -(-(columns - 2) // config.bptt)
    text = loss_figures()
    assert "has not been measured yet" not in text.partition("posterior filter")[2]
    assert f"valid loss after an epoch of {whole['updates']:,} updates" in text
    [(name, plot)] = loss_plots().items()
    assert f"(figures/{name})" in text
    assert "model: K = 3" in plot


def test_filtered_steps_begin_with_the_weights_of_a_run(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_filtered_step, "TEXTBOOK_EPSILON", 0.0)
    monkeypatch.setitem(bench_filtered_step.OURS, "highrank, filtered", ("train.min_posterior=0.5",))
    # Wide enough for the filter to be worth its cost.
    run = make_run(tmp_path / "k3", load_corpus(small_text), embedding_features=64)
    without_dropout = dict.fromkeys(run.config.dropout.__struct_fields__, 0.0)
    run.change_config(msgspec.structs.replace(run.config, dropout=type(run.config.dropout)(**without_dropout)))
    names = (*bench_filtered_step.OURS, bench_filtered_step.TEXTBOOK)
    steps = {name: bench_filtered_step.make_step(name, run.path, str(small_text)) for name in names}
    loss = {name: step() for name, step in steps.items()}
    assert loss["highrank, filtered"] == loss["highrank"]  # what is left out is gradient
    assert loss["textbook"] == pytest.approx(loss["highrank"], rel=1e-5)
    for name in ("highrank, bfloat16", "highrank, bfloat16, filtered"):
        assert loss[name] == pytest.approx(loss["highrank"], rel=1e-2)
    after = {name: step() for name, step in steps.items()}
    assert after["textbook"] == pytest.approx(after["highrank"], rel=1e-4)
    assert after["highrank, filtered"] != after["highrank"]
