"""Memory is a test: the peak of a call stays under its documented formula and does not grow as N * K * V."""

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Memory, memory_of
from highrank.functional import LossOptions, mixture_log_prob
from highrank.ops import chunked
from tests.implementations import every_fused, every_reduction
from tests.parity import INPUTS, Problem, make_problem


def call(problem: Problem, implementation: str, reduction: str, options: LossOptions) -> None:
    for name in INPUTS:
        getattr(problem, name).grad = None
        getattr(problem, name).requires_grad_()
    loss = problem.loss(implementation=implementation, reduction=reduction, options=options)
    loss.backward(problem.upstream[reduction].to(loss.dtype))


def memory_of_call(problem: Problem, implementation: str, reduction: str, options: LossOptions) -> Memory:
    """The first call of kernels is compared with PyTorch, which takes some rows of logits: of the second."""
    if implementation == "triton":
        call(problem, implementation, reduction, options)
        for name in INPUTS:
            getattr(problem, name).grad = None
    return memory_of(lambda: call(problem, implementation, reduction, options))


def sizes(problem: Problem) -> tuple[int, int, int]:
    """Bytes of (N, K, V), of the inputs, and of N * K numbers, in at least float32."""
    tokens, components, _ = problem.context.shape
    item = max(4, problem.context.element_size())
    inputs = sum(getattr(problem, name).numel() for name in INPUTS) * item
    return tokens * components * len(problem.weight) * item, inputs, tokens * components * item


@every_fused
@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_memory_stays_under_its_formula(implementation: str, reduction: str, dtype: torch.dtype) -> None:
    """O(N * K) and a block beside the gradients, which may be held twice (kept, and scaled by the upstream one)."""
    problem = make_problem(300, components=5, features=16, classes=2000, dtype=dtype)
    options = LossOptions(block_bytes=500_000)
    largest, inputs, numbers_NK = sizes(problem)
    allowed = 2 * options.block_bytes + 2 * inputs + 8 * numbers_NK
    assert allowed < largest / 4, "sizes that show nothing"
    used = memory_of_call(problem, implementation, reduction, options)
    assert used.peak_bytes <= allowed
    assert used.largest_bytes <= max(options.block_bytes, inputs)


def beside_gradients(problem: Problem, implementation: str, options: LossOptions) -> int:
    """Bytes at the peak of forward and backward that are not gradients."""
    peak = memory_of_call(problem, implementation, "mean", options).peak_bytes
    return peak - sum(x.numel() * x.element_size() for x in (getattr(problem, name) for name in INPUTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_memory_of_half_precision(dtype: torch.dtype) -> None:
    """Beside the block a part of it and a part of the weight's gradient in float32, and the sum of the latter."""
    problem = make_problem(150, components=3, features=304, classes=3000, dtype=dtype)
    options = LossOptions(block_bytes=200_000)
    allowed = options.block_bytes
    if dtype != torch.float32:
        allowed += 2 * options.block_bytes + 4 * problem.weight.numel()
    contexts = options.block_bytes * 304 // 3000  # of a block
    assert beside_gradients(problem, "chunked", options) <= allowed + 4 * contexts + 8 * 4 * 150 * 3


@every_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_where_there_are_fewer_classes_than_features(implementation: str, dtype: torch.dtype) -> None:
    """Copies of the contexts count: a block's are as large as the block."""
    problem = make_problem(2000, components=2, features=160, classes=16, dtype=dtype)
    options = LossOptions(block_bytes=50_000)
    contexts = dtype.itemsize * problem.context.numel()
    assert contexts > 25 * options.block_bytes
    copies = 3 if dtype == torch.float32 else 5
    assert beside_gradients(problem, implementation, options) <= copies * options.block_bytes + 16 * 4 * 2000 * 2


@every_fused
@every_reduction
def test_memory_does_not_grow_with_tokens_times_classes(implementation: str, reduction: str) -> None:
    """Twice the classes, or twice the tokens, costs what the inputs grew by."""
    options = LossOptions(block_bytes=500_000)

    def peak_beside_gradients(tokens: int, classes: int) -> float:
        problem = make_problem(tokens, components=5, features=8, classes=classes, dtype=torch.float32)
        _, inputs, numbers_NK = sizes(problem)
        return memory_of_call(problem, implementation, reduction, options).peak_bytes - 2 * inputs - 8 * numbers_NK

    for tokens, classes in ((200, 1000), (400, 1000), (200, 2000), (400, 2000)):
        assert peak_beside_gradients(tokens, classes) <= 2 * options.block_bytes


@every_reduction
def test_the_measurement_sees_the_whole_tensor_in_the_reference(reduction: str) -> None:
    problem = make_problem(300, components=5, features=16, classes=2000, dtype=torch.float32)
    largest, inputs, _ = sizes(problem)
    used = memory_of(lambda: call(problem, "reference", reduction, LossOptions()))
    assert used.largest_bytes >= largest
    assert used.peak_bytes >= 2 * largest
    assert used.peak_bytes >= 2 * inputs


@pytest.mark.parametrize("stored", ["forward", "backward"])
def test_the_measurement_sees_a_tensor_that_lives_for_a_moment(stored: str) -> None:
    class Momentary(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone() if stored == "backward" else x + x.new_zeros(1000, 1000).sum()

        @staticmethod
        def backward(ctx: object, upstream: Tensor) -> Tensor:
            return upstream * 2 if stored == "forward" else upstream + upstream.new_zeros(1000, 1000).sum()

    x = torch.ones(3, requires_grad=True)
    used = memory_of(lambda: Momentary.apply(x).sum().backward())
    assert 4_000_000 <= used.largest_bytes <= used.peak_bytes <= 4_100_000


def test_log_prob_stores_its_result_a_block_and_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(300, components=5, features=16, classes=2000, dtype=torch.float32)
    options = LossOptions(block_bytes=500_000)
    monkeypatch.setattr(chunked, "STRIP_BYTES", 80_000)
    largest, _, numbers_NK = sizes(problem)
    used = memory_of(
        lambda: mixture_log_prob(
            problem.context, problem.prior_logits, problem.weight, bias=problem.bias, options=options
        )
    )
    assert used.peak_bytes <= largest / 5 + options.block_bytes + (1 + 2 / 5) * 80_000 + 3 * 4 * numbers_NK
    assert used.largest_bytes <= largest / 5
