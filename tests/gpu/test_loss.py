"""The loss on a CUDA device: the same numbers as on the CPU, no worse than the naive formula, the same bits twice."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import losses
from benchmarks.bench_loss_memory import working_bytes
from highrank import LossOptions, mixture_cross_entropy, mixture_log_prob
from tests.gpu.marks import compiled, on_a_gpu
from tests.implementations import every_reduction
from tests.parity import (
    INPUTS,
    SIZES,
    Problem,
    Size,
    assert_no_worse_than_naive,
    assert_same,
    assert_the_mean_has_no_tilt,
    assert_wrong_targets_are_nan,
    make_problem,
    solve,
)

pytestmark = on_a_gpu

every_fused = pytest.mark.parametrize("implementation", ["chunked", pytest.param("triton", marks=compiled)])

# WikiText-2's sizes, and those of a large model.
LARGE = (Size(20, 15, 300, 33_278, 1.0), Size(20, 1, 512, 128_256, 1.0))


@pytest.mark.parametrize("components", [1, 3, 15])
@pytest.mark.parametrize(
    ("implementation", "smoothing"), [("chunked", 0.0), ("chunked", 0.1), pytest.param("triton", 0.0, marks=compiled)]
)
def test_the_loss_and_its_gradients_are_those_of_the_cpu(
    components: int, implementation: str, smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(components)
    shapes = ((37, components, 20), (37, components), (501, 20), (501,))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    target = torch.randint(501, (37,), generator=generator)
    results = []
    for device, name in (("cpu", "chunked"), ("cuda", implementation)):
        context, prior_logits, weight, bias = (t.to(device, copy=True).requires_grad_() for t in inputs)
        arguments = (context, prior_logits, weight, target.to(device))
        loss = mixture_cross_entropy(*arguments, bias=bias, label_smoothing=smoothing, implementation=name)
        (loss * 1.7).backward()
        results.append([loss, context.grad, prior_logits.grad, weight.grad, bias.grad])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_gpu is not None
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("components", [1, 3])
def test_log_probabilities_and_their_gradients_are_those_of_the_cpu(components: int, dtype: torch.dtype) -> None:
    problem = make_problem(37, components=components, features=20, classes=501, dtype=dtype)
    upstream = torch.randn(37, 501, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        there = problem.on(device)
        leaves = [getattr(there, name).requires_grad_() for name in INPUTS]
        log_prob = mixture_log_prob(*leaves[:3], bias=leaves[3])
        results.append([log_prob, *torch.autograd.grad(log_prob, leaves, upstream.to(device, log_prob.dtype))])
    for on_cpu, on_gpu in zip(*results, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-10, atol=1e-12)
        else:
            assert (on_gpu.cpu() - on_cpu).double().norm() <= 2**-6 * on_cpu.double().norm()


@every_fused
def test_the_factor_of_the_mean_is_not_rounded(implementation: str) -> None:
    assert_the_mean_has_no_tilt(implementation, "cuda")


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


@every_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_stays_under_its_formula(implementation: str, dtype: torch.dtype) -> None:
    """What docs/loss.md says of a mean, beside inputs and gradients; and what cuBLAS works in."""
    size, block_bytes, cublas_bytes = losses.Size(16_000, 4, 64, 20_000), 128 * 2**20, 48 * 2**20
    contexts_bytes = block_bytes * size.features // size.classes  # of a block
    weight_bytes = 1.2 * size.classes * size.features * dtype.itemsize  # with the rows and columns that it grows by
    allowed = block_bytes + 4 * contexts_bytes + 64 * size.tokens * size.components + 2 * weight_bytes
    if dtype != torch.float32:
        strips_bytes = block_bytes + 4 * size.classes * size.features  # of the block and of the weight's gradient
        allowed += 4 / dtype.itemsize * weight_bytes + (strips_bytes if implementation == "chunked" else 0)
    assert allowed + cublas_bytes < size.bytes_of_logits / 8, "sizes that show nothing"
    loss = losses.ours(implementation, LossOptions(block_bytes=block_bytes))
    assert working_bytes(loss, losses.make_case(size, dtype, "cuda")) <= allowed + cublas_bytes


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
            context,
            problem.prior_logits,
            weight,
            problem.target,
            bias=problem.bias,
            reduction=reduction,
            implementation="triton",
        )

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (problem.context, problem.weight)]
        value = function(*leaves)
        found.append([value, *torch.autograd.grad(value, leaves, problem.upstream[reduction])])
    torch.testing.assert_close(found[1], found[0])


WITHOUT_A_COMPILER = """
import torch
import highrank
torch.manual_seed(1)
context, weight = (torch.randn(size, device="cuda", requires_grad=True) for size in [(40, 3, 16), (1000, 16)])
prior_logits, target = torch.randn(40, 3, device="cuda"), torch.randint(1000, (40,), device="cuda")
found = []
for implementation in ("auto", "chunked", "auto"):
    loss = highrank.mixture_cross_entropy(context, prior_logits, weight, target, implementation=implementation)
    found.append([loss, *torch.autograd.grad(loss, (context, weight))])
assert all(a.equal(b) and c.equal(b) for a, b, c in zip(*found))
"""


@compiled
def test_without_a_c_compiler_plain_pytorch_takes_the_kernels_place(tmp_path: Path) -> None:
    nowhere = {"CC": str(tmp_path / "no-compiler"), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | nowhere
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER], capture_output=True, text=True, timeout=180, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the loss's kernels fail on cuda:0, plain PyTorch takes their place") == 1, done.stderr


@pytest.mark.parametrize("implementation", ["reference", "chunked", pytest.param("triton", marks=compiled)])
def test_a_target_out_of_range_makes_its_loss_and_gradient_nan(implementation: str) -> None:
    assert_wrong_targets_are_nan(implementation, "cuda")
