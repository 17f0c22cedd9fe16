"""Evaluation and training on a CUDA device: as on the CPU, without waiting, and resumed to the same bits."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.workers_agree import agreement, train_with
from highrank.data import load_corpus
from highrank.data.batches import Columns
from highrank.evaluate import DynamicSettings, dynamic_evaluate, evaluate, gradient_statistics
from highrank.runs import RunFolder, build_model, read_config
from highrank.runs.tensors import read_tensors
from highrank.train import Machine, StageState, train_stage, update
from highrank.train.gradients import BLOCK, _rounded_in_place
from tests.gpu.marks import on_a_gpu

pytestmark = on_a_gpu

RECIPE = Path(__file__).parents[1] / "train" / "tiny.toml"


def test_a_sum_is_rounded_in_its_own_memory() -> None:
    total = torch.randn(2 * BLOCK + 5, dtype=torch.float64, device="cuda")
    expected, place = total.float(), total.data_ptr()
    rounded = _rounded_in_place(total, torch.float32)
    assert torch.equal(rounded, expected)
    assert rounded.data_ptr() == place


def test_evaluation_static_and_dynamic_agrees_with_the_cpu(small_text: Path) -> None:
    corpus = load_corpus(small_text)
    config = read_config(RECIPE)
    found = {}
    for device in ("cpu", "cuda"):
        model = build_model(config, len(corpus.vocabulary)).double().to(device)
        statistics = gradient_statistics(model, corpus.tokens["train"], batch=10)
        settings = DynamicSettings(lr=0.001)
        found[device] = [
            evaluate(model, corpus.tokens["test"]).loss_nats,
            dynamic_evaluate(model, corpus.tokens["test"][:500], statistics, settings).loss_nats,
        ]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-8)


def test_a_run_on_a_gpu_resumes_to_the_same_bits(recurrence: str, small_text: Path, tmp_path: Path) -> None:
    corpus = load_corpus(small_text)
    persistent = ["train.precision=bfloat16", f"train.recurrence={recurrence}"]
    recorded = ["train.micro_batch=0", "train.cuda_graphs=true"]
    config = read_config(RECIPE, overrides=[] if recurrence == "torch" else [*persistent, *recorded])
    whole = RunFolder.create(tmp_path / "whole", config, corpus.vocabulary, corpus)
    figures = train_stage(whole, "train", corpus, Machine(torch.device("cuda")))
    assert math.isfinite(figures["valid_loss_nats"])

    cut = RunFolder.create(tmp_path / "cut", config, corpus.vocabulary, corpus)
    checkpoints = sorted((whole.path / "train").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    (cut.path / "train").mkdir()
    checkpoints[0].rename(cut.path / "train" / checkpoints[0].name)  # as if killed in the last epoch
    shutil.copy(whole.best_model_path("train"), cut.best_model_path("train"))
    train_stage(cut, "train", corpus, Machine(torch.device("cuda")), resume=True)
    last = [sorted((run.path / "train").glob("checkpoint-*"))[-1] / "model.safetensors" for run in (whole, cut)]
    ours, theirs = (read_tensors(path) for path in last)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def losses_of_updates(
    precision: str,
    small_text: Path,
    device: str,
    *,
    recurrence: str = "torch",
    cuda_graphs: bool = False,
    past_decode: float = 0.0,
    micro_batch: int = 6,
    watched: bool = False,
) -> list[float]:
    """Nats a token of six updates of the same fresh model; ``watched``: the last four must not make the host wait."""
    corpus = load_corpus(small_text)
    overrides = [f"train.precision={precision}", f"train.recurrence={recurrence}", f"train.micro_batch={micro_batch}"]
    overrides += [f"train.cuda_graphs={str(cuda_graphs).lower()}", f"train.past_decode={past_decode}"]
    config = read_config(RECIPE, overrides=overrides)
    torch.manual_seed(1)
    state = StageState(build_model(config, len(corpus.vocabulary)).to(device).train(), config)
    columns = Columns(corpus.tokens["train"], config.train.batch)
    sums = []
    for step in range(6):
        if watched:
            torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")
        try:
            done = update(state, columns, config, seed=1, lr=config.train.lr, length=config.train.bptt)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        state.position.add_step(done.steps, done.steps * config.train.batch)
        sums.append(done.loss_sum / (done.steps * config.train.batch))
    return [each.item() for each in sums]


@pytest.mark.parametrize(("past_decode", "micro_batch"), [(0.0, 6), (0.1, 6), (0.0, 3)])
def test_an_update_does_not_wait_for_the_device(past_decode: float, micro_batch: int, small_text: Path) -> None:
    how = {"past_decode": past_decode, "micro_batch": micro_batch}
    losses = losses_of_updates("float32", small_text, "cuda", **how, watched=True)
    assert all(math.isfinite(loss) for loss in losses)


def test_an_update_in_half_precision_does_not_either(recurrence: str, small_text: Path) -> None:
    losses = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence, watched=True)
    assert all(math.isfinite(loss) for loss in losses)


def test_recorded_updates_do_not_wait_and_have_the_same_bits(recurrence: str, small_text: Path) -> None:
    """The first one is as it comes, the second is recorded."""
    plain = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence)
    recorded = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence, cuda_graphs=True, watched=True)
    assert recorded == plain


def test_recorded_updates_with_past_decoding_have_the_same_bits_too(small_text: Path) -> None:
    plain = losses_of_updates("float32", small_text, "cuda", past_decode=0.1)
    assert losses_of_updates("float32", small_text, "cuda", past_decode=0.1, cuda_graphs=True, watched=True) == plain


def test_rounded_products_lead_where_exact_ones_do(recurrence: str, small_text: Path) -> None:
    exact = losses_of_updates("float32", small_text, "cuda")
    short = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence)
    assert short != exact
    assert short[:3] == pytest.approx(exact[:3], rel=5e-3)  # later updates follow other paths


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices: NCCL has one worker on each")
def test_workers_with_a_gpu_each_end_alike(small_text: Path, tmp_path: Path) -> None:
    arguments = [str(RECIPE), "--data", str(small_text), "--device", "cuda"]
    for workers in (1, 2):
        train_with(workers, tmp_path / str(workers), arguments)
    found = agreement(tmp_path / "1", tmp_path / "2")
    assert found["averaging"]
    assert found["largest_difference_of_validation_nats"] <= 1e-5
