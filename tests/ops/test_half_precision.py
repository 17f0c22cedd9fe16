"""bfloat16, float16 and autocast: the range of float16, factors that are not rounded, and the edges once more."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from highrank.functional import LossOptions, mixture_cross_entropy, mixture_log_prob
from tests.implementations import every_fused, every_implementation, every_reduction
from tests.parity import (
    INPUTS,
    MARGIN,
    Problem,
    assert_same,
    assert_the_mean_has_no_tilt,
    error,
    make_problem,
    solve,
)

every_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
ERROR = {torch.bfloat16: 0.02, torch.float16: 0.003}  # a few roundings of logits of about 1 and of their exponentials


@every_implementation
@every_reduction
@every_half
def test_autocast_rounds_the_inputs_and_nothing_else(implementation: str, reduction: str, dtype: torch.dtype) -> None:
    problem = make_problem(3, 4, dtype=torch.float32)
    leaves = [getattr(problem, name).requires_grad_() for name in INPUTS]
    with torch.autocast("cpu", dtype):
        loss = problem.loss(implementation=implementation, reduction=reduction)
    rounded = make_problem(3, 4, dtype=torch.float32).to(dtype)
    gradients = torch.autograd.grad(loss, leaves, rounded.upstream[reduction].to(loss.dtype))
    expected = solve(rounded, implementation, reduction)
    assert loss.dtype == (dtype if (implementation, reduction) == ("reference", "none") else torch.float32)
    assert loss.equal(expected.loss)
    for name, gradient in zip(INPUTS, gradients, strict=True):
        short = expected.gradients[name]
        assert short is not None
        assert gradient.dtype == torch.float32
        assert gradient.equal(short.float())


@every_fused
@every_reduction
def test_sums_of_gradients_stay_within_the_range_of_float16(implementation: str, reduction: str) -> None:
    """A mean over many tokens: the gradient is small, the sum that it is a share of is beyond 65,504."""
    tokens, share = 3000, 1 / 3000
    problem = make_problem(tokens, components=1, features=2, classes=3, dtype=torch.float64)
    problem.context = problem.context + 100
    problem.weight = problem.weight / 100
    problem.target.fill_(1)
    problem.upstream = {
        "none": torch.full((tokens,), share, dtype=torch.float64),
        "sum": torch.tensor(share, dtype=torch.float64),
        "mean": torch.tensor(1.0, dtype=torch.float64),
    }
    problem = problem.to(torch.float16)
    ours = solve(problem, implementation, reduction).gradients["weight"]
    truth = solve(problem.to(torch.float64), "reference", reduction).gradients["weight"]
    assert ours is not None
    assert truth is not None
    assert tokens * truth.abs().max() > 2 * torch.finfo(torch.float16).max
    assert error(ours, truth) < ERROR[torch.float16]


def test_the_mean_of_the_definition_stays_within_the_range_of_float16() -> None:
    problem = make_problem(20_000, components=2, features=2, classes=100, dtype=torch.float16)
    problem.target[:3] = -100
    whole, mean = (problem.loss(implementation="reference", reduction=reduction) for reduction in ("sum", "mean"))
    assert whole > torch.finfo(torch.float16).max
    torch.testing.assert_close(19_997 * mean, whole)
    torch.testing.assert_close(mean, problem.loss(implementation="chunked"), rtol=1e-3, atol=0)


@every_fused
@every_reduction
def test_backward_where_autocast_is_on_computes_what_it_does_elsewhere(implementation: str, reduction: str) -> None:
    problem = make_problem(5, dtype=torch.float32)
    leaves = [getattr(problem, name).requires_grad_() for name in INPUTS]

    def gradients(autocast: bool) -> list[Tensor]:
        loss = problem.loss(implementation=implementation, reduction=reduction)
        log_prob = mixture_log_prob(*leaves[:3], bias=problem.bias)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return list(torch.autograd.grad(loss.sum() + log_prob[:, 0].sum(), leaves))

    for there, here in zip(gradients(True), gradients(False), strict=True):
        assert there.equal(here)


def test_the_factor_of_the_mean_is_not_rounded() -> None:
    assert_the_mean_has_no_tilt("chunked", "cpu")


SIZES = [(0, 3, 5, 7), (1, 1, 1, 1), (1, 3, 5, 1), (2, 15, 3, 2), (13, 4, 3, 33)]  # N, K, D, V


@every_half
@every_reduction
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_small_sizes_and_small_blocks(
    dtype: torch.dtype, reduction: str, size: tuple[int, int, int, int], bias: bool
) -> None:
    tokens, components, features, classes = size
    problem = make_problem(
        tokens, components=components, features=features, classes=classes, dtype=dtype, seed=1, bias=bias
    )
    problem.target[2::3] = -100
    truth = solve(problem.to(torch.float64), "reference", reduction)
    for block_bytes, min_posterior in product((None, 1, 300, 2000), (None, 0.0)):
        options = LossOptions(block_bytes=block_bytes, min_posterior=min_posterior)
        ours = solve(problem, "chunked", reduction, options=options)
        torch.testing.assert_close(
            ours.loss.double(), truth.loss.double(), rtol=ERROR[dtype], atol=ERROR[dtype], equal_nan=True
        )
        for name, true in truth.gradients.items():
            mine = ours.gradients[name]
            if true is not None:
                assert mine is not None
                assert mine.dtype == dtype
                torch.testing.assert_close(mine.double(), true, rtol=0, atol=ERROR[dtype] * max(1.0, top(true)))
    log_prob = mixture_log_prob(
        problem.context, problem.prior_logits, problem.weight, bias=problem.bias, options=LossOptions(block_bytes=300)
    )
    assert log_prob.shape == (tokens, classes)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(tokens), rtol=1e-5, atol=0)


def top(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


@every_half
@every_reduction
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_is_not_a_number_is_not_swallowed(dtype: torch.dtype, reduction: str, name: str, garbage: float) -> None:
    problem = make_problem(6, dtype=dtype)
    getattr(problem, name)[2] = garbage
    ours = solve(problem, "chunked", reduction, options=LossOptions(block_bytes=300))
    expected = solve(problem, "reference", reduction)
    assert expected.loss.isnan().any()
    assert ours.loss.isnan().equal(expected.loss.isnan())
    for each, gradient in expected.gradients.items():
        mine = ours.gradients[each]
        assert gradient is not None
        assert mine is not None
        assert mine.isnan().equal(gradient.isnan()), each


@every_half
@every_reduction
def test_all_targets_ignored(dtype: torch.dtype, reduction: str) -> None:
    problem = make_problem(5, dtype=dtype)
    problem.target.fill_(-100)
    ours = solve(problem, "chunked", reduction)
    assert bool(ours.loss.isnan().all()) == (reduction == "mean")
    assert reduction == "mean" or not ours.loss.any()
    assert all(gradient is not None and not gradient.any() for gradient in ours.gradients.values())


@every_half
@pytest.mark.parametrize("scale", [50, 1e3, 1e4])
def test_large_logits(dtype: torch.dtype, scale: float) -> None:
    problem = large(scale).to(dtype)
    truth = solve(problem.to(torch.float64), "reference", "none").loss
    naive = solve(problem, "reference", "none").loss
    ours = solve(problem, "chunked", "none").loss
    assert truth.max() > scale / 2
    assert ours.isfinite().all()
    assert error(ours, truth) <= error(naive, truth) + MARGIN[dtype]


def large(scale: float) -> Problem:
    """Logits from about -scale to scale."""
    problem = make_problem(12, classes=9, seed=3)
    problem.context, problem.weight = torch.sign(problem.context) * scale, torch.sign(problem.weight) / 5
    return problem


@every_fused
@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_class_with_a_bias_of_minus_infinity_is_not_there(
    implementation: str, reduction: str, dtype: torch.dtype
) -> None:
    """As in cross_entropy: the rows with which people fill a vocabulary up."""
    problem = make_problem(8, dtype=dtype)
    assert problem.bias is not None
    problem.target[problem.target == 6] = 0
    problem.bias[6] = -math.inf
    ours = solve(problem, implementation, reduction)
    shorter = make_problem(8, dtype=dtype)
    assert shorter.bias is not None
    shorter.target, shorter.weight, shorter.bias = problem.target, shorter.weight[:6], shorter.bias[:6]
    expected = solve(shorter, implementation, reduction)
    for name in ("weight", "bias"):
        gradient = ours.gradients[name]
        assert gradient is not None
        assert not gradient[6].any()
        ours.gradients[name] = gradient[:6]
    eps = torch.finfo(dtype).eps
    assert_same(ours, expected, rtol=8 * eps, atol=8 * eps)


def test_mixtures_of_dtypes_are_refused_under_autocast_too() -> None:
    problem = make_problem(4, dtype=torch.float32)
    problem.weight = problem.weight.double()  # which autocast leaves alone
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            F.linear(problem.context, problem.weight)
        with pytest.raises(ValueError, match=r"weight: expected torch\.bfloat16 .* got torch\.float64"):
            problem.loss()
        problem.context = torch.zeros(4, 3, 5, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"got torch"):
            mixture_cross_entropy(problem.context, problem.context[..., 0], problem.context[0], problem.target)
