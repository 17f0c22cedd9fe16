"""What only a CUDA device can show: the same numbers as on the CPU, cuDNN's backward, and resume to the same bits."""

import math
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.workers_agree import agreement, train_with
from highrank import LossOptions, mixture_cross_entropy
from highrank.data import load_corpus
from highrank.data.batches import Columns
from highrank.evaluate import DynamicSettings, dynamic_evaluate, evaluate, gradient_statistics
from highrank.models import persistent_lstm
from highrank.ops import triton
from highrank.runs import RunFolder, build_model, read_config
from highrank.runs.tensors import read_tensors
from highrank.train import StageState, train_stage, update
from highrank.train.gradients import BLOCK, _rounded_in_place
from tests.implementations import every_reduction
from tests.models.test_persistent_lstm import errors, inputs_of, ours, torchs
from tests.models.test_persistent_lstm import solve as solve_layer
from tests.parity import SIZES, Problem, Size, assert_no_worse_than_naive, assert_same, make_problem, solve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # cuDNN copies weights that are not in one flat buffer, as the dropped ones are, and says so.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]

RECIPE = Path(__file__).parent / "train" / "tiny.toml"

NO_TRITON = triton.cannot_run(torch.device("cuda")) if torch.cuda.is_available() else "no GPU"
compiled = pytest.mark.skipif(NO_TRITON is not None, reason=f"triton: {NO_TRITON}")

every_fused = pytest.mark.parametrize("implementation", ["chunked", pytest.param("triton", marks=compiled)])

# WikiText-2's sizes, and those of a large model.
LARGE = (Size(20, 15, 300, 33_278, 1.0), Size(20, 1, 512, 128_256, 1.0))


@every_fused
@pytest.mark.parametrize("components", [1, 3, 15])
def test_the_loss_and_its_gradients_are_those_of_the_cpu(components: int, implementation: str) -> None:
    generator = torch.Generator().manual_seed(components)
    shapes = ((37, components, 20), (37, components), (501, 20), (501,))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    target = torch.randint(501, (37,), generator=generator)
    results = []
    for device, name in (("cpu", "chunked"), ("cuda", implementation)):
        context, prior_logits, weight, bias = (t.to(device, copy=True).requires_grad_() for t in inputs)
        loss = mixture_cross_entropy(context, prior_logits, weight, target.to(device), bias=bias, implementation=name)
        (loss * 1.7).backward()
        results.append([loss, context.grad, prior_logits.grad, weight.grad, bias.grad])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_gpu is not None
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module", autouse=True)
def _compiled_kernels() -> None:
    assert os.environ["TRITON_INTERPRET"] == "0", "make test-gpu, or TRITON_INTERPRET=0: else no kernel is compiled"


@cache
def on_the_gpu(size: Size) -> Problem:
    """Drawn once: the largest takes the CPU some seconds."""
    return size.problem(torch.float64).on("cuda")


@every_fused
@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block_bytes", [None, 100_000])
@pytest.mark.parametrize("size", [*SIZES, *LARGE], ids=str)
def test_no_worse_than_naive(
    implementation: str, reduction: str, dtype: torch.dtype, block_bytes: int | None, size: Size
) -> None:
    problem = on_the_gpu(size).to(dtype)
    assert_no_worse_than_naive(problem, implementation, reduction, LossOptions(block_bytes=block_bytes))


@compiled
@every_reduction
def test_two_runs_of_the_kernels_have_the_same_bits(reduction: str) -> None:
    problem = make_problem(300, components=7, features=64, classes=5001, dtype=torch.bfloat16).on("cuda")
    options = LossOptions(block_bytes=4_000_000)
    one, other = (solve(problem, "triton", reduction, options=options) for _ in range(2))
    assert_same(one, other, rtol=0, atol=0)


@compiled
@every_reduction
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
def test_the_kernels_compile_without_a_graph_break(reduction: str) -> None:
    problem = make_problem(20, dtype=torch.float32).on("cuda")

    def loss(context: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return mixture_cross_entropy(
            context, problem.prior_logits, weight, problem.target, bias=problem.bias, reduction=reduction
        )

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (problem.context, problem.weight)]
        value = function(*leaves)
        found.append([value, *torch.autograd.grad(value, leaves, problem.upstream[reduction])])
    torch.testing.assert_close(found[1], found[0])


@every_fused
def test_a_target_out_of_range_makes_its_loss_nan(implementation: str) -> None:
    problem = make_problem(6).on("cuda")
    problem.target[[1, 4]] = torch.tensor([7, -1], device="cuda")
    loss = problem.loss(implementation=implementation, reduction="none")
    assert loss.isnan().tolist() == [False, True, False, False, True, False]


# The persistent recurrence --------------------------------------------------------------------------------------------

ONE_LAYER = """
import torch
from highrank.models.persistent_lstm import persistent_lstm
width, leaves = 960, []
for size in [(70, 12, 280), (1, 12, width), (1, 12, width), (4 * width, 280), (4 * width, width), *[(4 * width,)] * 2]:
    leaves.append(torch.randn(size, device="cuda", dtype=torch.bfloat16).mul_(0.05).requires_grad_())
leaves[2] = leaves[2].detach().float().requires_grad_()
persistent_lstm(leaves[0], (leaves[1], leaves[2]), *leaves[3:])[0].sum().backward()
torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def programs_meet() -> None:
    """Programs that wait for one another for ever would hold this process too: first in one that can be ended."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", ONE_LAYER], check=True, timeout=180, env=environment)


@compiled
@pytest.mark.usefixtures("programs_meet")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "size", [(70, 12, 280, 960), (70, 12, 960, 620), (33, 5, 300, 1150), (1, 1, 3, 5), (17, 17, 40, 321)], ids=str
)
def test_a_persistent_layer_is_no_worse_than_cudnn(size: tuple[int, ...], dtype: torch.dtype) -> None:
    if (reason := persistent_lstm.cannot_run(torch.device("cuda"), dtype, size[1], size[3])) is not None:
        pytest.skip(reason)
    inputs = [x.cuda() for x in inputs_of(*size)]
    truth = solve_layer(torchs, inputs, torch.float64)
    naive = errors(solve_layer(torchs, inputs, dtype), truth)
    found = errors(solve_layer(ours, inputs, dtype, long_cell=True), truth)
    for error, naive_error in zip(found, naive, strict=True):
        assert error < 1.5 * naive_error + torch.finfo(dtype).eps / 2  # of few numbers the errors are chance


@compiled
@pytest.mark.usefixtures("programs_meet")
def test_a_thousand_persistent_layers_have_the_same_bits() -> None:
    """A program that read before the others had written would differ, now and then: two problems take turns, so that
    what is left in the memory from the last call is wrong."""
    problems = []
    for scale in (1.0, -0.5):
        leaves = [x.cuda().to(torch.bfloat16).mul(scale) for x in inputs_of(70, 12, 280, 960)]
        leaves[2] = leaves[2].float()
        problems.append([x.requires_grad_() for x in leaves])
    upstream = torch.randn(70, 12, 960, device="cuda", dtype=torch.bfloat16)

    def solved(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs, *_ = ours(*leaves)
        return [outputs, *torch.autograd.grad(outputs, leaves, upstream)]

    first = [solved(leaves) for leaves in problems]
    for _ in range(500):
        for leaves, expected in zip(problems, first, strict=True):
            assert all(one.equal(other) for one, other in zip(solved(leaves), expected, strict=True))


# Evaluation and training ----------------------------------------------------------------------------------------------


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


@pytest.fixture(params=["torch", pytest.param("triton", marks=compiled)])
def recurrence(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        request.getfixturevalue("programs_meet")
    return str(request.param)


def test_a_run_on_a_gpu_resumes_to_the_same_bits(recurrence: str, small_text: Path, tmp_path: Path) -> None:
    corpus = load_corpus(small_text)
    persistent = ["train.precision=bfloat16", f"train.recurrence={recurrence}"]
    recorded = ["train.micro_batch=0", "train.cuda_graphs=true"]
    config = read_config(RECIPE, overrides=[] if recurrence == "torch" else [*persistent, *recorded])
    whole = RunFolder.create(tmp_path / "whole", config, corpus.vocabulary, corpus)
    figures = train_stage(whole, "train", corpus, device="cuda")
    assert math.isfinite(figures["valid_loss_nats"])

    cut = RunFolder.create(tmp_path / "cut", config, corpus.vocabulary, corpus)
    checkpoints = sorted((whole.path / "train").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    (cut.path / "train").mkdir()
    checkpoints[0].rename(cut.path / "train" / checkpoints[0].name)  # as if killed in the last epoch
    shutil.copy(whole.best_model_path("train"), cut.best_model_path("train"))
    train_stage(cut, "train", corpus, device="cuda", resume=True)
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
    watched: bool = False,
) -> list[float]:
    """Nats a token of six updates of the same fresh model; ``watched``: the last four must not make the host wait."""
    corpus = load_corpus(small_text)
    overrides = [f"train.precision={precision}", f"train.recurrence={recurrence}", "train.micro_batch=6"]
    config = read_config(RECIPE, overrides=[*overrides, f"train.cuda_graphs={str(cuda_graphs).lower()}"])
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


def test_an_update_does_not_wait_for_the_device(small_text: Path) -> None:
    losses = losses_of_updates("float32", small_text, "cuda", watched=True)
    assert all(math.isfinite(loss) for loss in losses)


def test_an_update_in_half_precision_does_not_either(recurrence: str, small_text: Path) -> None:
    losses = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence, watched=True)
    assert all(math.isfinite(loss) for loss in losses)


def test_recorded_updates_do_not_wait_and_have_the_same_bits(recurrence: str, small_text: Path) -> None:
    """The first one is as it comes, the second is recorded."""
    plain = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence)
    recorded = losses_of_updates("bfloat16", small_text, "cuda", recurrence=recurrence, cuda_graphs=True, watched=True)
    assert recorded == plain


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
