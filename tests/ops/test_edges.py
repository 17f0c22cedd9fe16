"""The parity protocol: sizes one off a block, no token and one, ignored tokens, huge logits, NaN."""

import math

import pytest
import torch
from torch.nn import functional as F

from highrank.functional import LossOptions, mixture_log_prob
from tests.implementations import block_of, every_implementation, every_reduction
from tests.parity import INPUTS, assert_same, error, make_problem, solve


@every_implementation
@every_reduction
@pytest.mark.parametrize("tokens_per_block", [1, 2, 6, 7, 8, 12, 13, 14, 1000])
def test_blocks_of_any_size(implementation: str, reduction: str, tokens_per_block: int) -> None:
    problem = make_problem(13)
    problem.target[[0, 6, 12]] = -100
    ours = solve(problem, implementation, reduction, options=block_of(tokens_per_block, problem))
    assert_same(ours, solve(problem, "reference", reduction))


@every_implementation
@every_reduction
def test_a_block_smaller_than_a_token_is_a_token(implementation: str, reduction: str) -> None:
    problem = make_problem(3)
    ours = solve(problem, implementation, reduction, options=LossOptions(block_bytes=1))
    assert_same(ours, solve(problem, "reference", reduction))


@every_implementation
@every_reduction
@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("components", [1, 4])
def test_no_token_and_one_token(implementation: str, reduction: str, tokens: int, components: int) -> None:
    problem = make_problem(tokens, components=components)
    ours = solve(problem, implementation, reduction)
    assert_same(ours, solve(problem, "reference", reduction), equal_nan=True)
    if tokens == 0:
        assert ours.loss.shape == ((0,) if reduction == "none" else ())
        assert bool(ours.loss.isnan().all()) == (reduction != "sum")
        for name in ("weight", "bias"):
            gradient = ours.gradients[name]
            assert gradient is not None
            assert not gradient.any()
    log_prob = mixture_log_prob(problem.context, problem.prior_logits, problem.weight)
    assert log_prob.shape == (tokens, 7)


@every_implementation
@every_reduction
def test_all_targets_ignored(implementation: str, reduction: str) -> None:
    """As in PyTorch's cross_entropy: the mean is NaN, the sum is 0, and the gradients of both are zero."""
    problem = make_problem(5)
    problem.target.fill_(-100)
    ours = solve(problem, implementation, reduction)
    assert bool(ours.loss.isnan().all()) == (reduction == "mean")
    assert reduction == "mean" or not ours.loss.any()
    logits = torch.zeros(5, 7, requires_grad=True)
    F.cross_entropy(logits, problem.target, reduction=reduction).sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()  # what is promised above
    for name, gradient in ours.gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, torch.zeros_like(gradient)), f"gradient of {name}: {gradient}"


@every_implementation
@every_reduction
@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 3, 255])
def test_some_targets_ignored(implementation: str, reduction: str, ignore_index: int) -> None:
    problem = make_problem(10)
    problem.target[torch.tensor([0, 4, 9])] = ignore_index
    problem.ignore_index = ignore_index
    ours = solve(problem, implementation, reduction, options=block_of(4, problem))
    assert_same(ours, solve(problem, "reference", reduction))

    # The same without the ignored tokens.
    counts = problem.target != ignore_index
    kept = make_problem(10)
    kept.target = problem.target[counts]
    kept.context, kept.prior_logits = kept.context[counts], kept.prior_logits[counts]
    kept.upstream["none"] = kept.upstream["none"][counts]
    expected = solve(kept, "reference", reduction)
    if reduction == "none":
        assert not ours.loss[~counts].any()
    torch.testing.assert_close(ours.loss[counts] if reduction == "none" else ours.loss, expected.loss)
    torch.testing.assert_close(ours.gradients["weight"], expected.gradients["weight"])
    context, expected_context = ours.gradients["context"], expected.gradients["context"]
    assert context is not None
    assert not context[~counts].any()
    torch.testing.assert_close(context[counts], expected_context)


@every_implementation
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_an_ignored_token_holds_does_not_reach_the_loss(
    implementation: str, reduction: str, garbage: float
) -> None:
    """Padding may hold anything: as in PyTorch's cross_entropy, its loss is 0."""
    problem = make_problem(5)
    problem.target[2] = -100
    expected = problem.loss(implementation="reference", reduction=reduction)
    problem.context[2] = garbage
    assert torch.equal(
        F.cross_entropy(torch.full((1, 7), garbage), torch.tensor([-100]), reduction="sum"), torch.tensor(0.0)
    )
    torch.testing.assert_close(problem.loss(implementation=implementation, reduction=reduction), expected)


@every_implementation
@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("where", ["context", "bias", "prior_logits"])
def test_logits_of_ten_thousand(implementation: str, reduction: str, dtype: torch.dtype, where: str) -> None:
    problem = make_problem(12, classes=9, seed=3)
    signs = torch.sign(getattr(problem, where))
    setattr(problem, where, signs * 1e4)
    if where == "context":
        problem.weight = torch.sign(problem.weight) / 5  # five features: logits from -1e4 to 1e4
    problem = problem.to(dtype)
    truth = solve(problem.to(torch.float64), "reference", reduction)
    assert truth.loss.abs().max() > 1e3 or where == "prior_logits"
    ours = solve(problem, implementation, reduction, options=block_of(5, problem))
    tolerance = 4 * torch.finfo(dtype).eps * 2e4  # log-probabilities of -2e4 cannot be known better
    for value, true in [(ours.loss, truth.loss), *((ours.gradients[n], truth.gradients[n]) for n in INPUTS)]:
        assert value is not None
        assert true is not None
        assert value.isfinite().all()
        assert error(value, true) < tolerance


@every_implementation
@every_reduction
@pytest.mark.parametrize("name", ["context", "prior_logits", "weight", "bias"])
def test_a_nan_is_not_swallowed(implementation: str, reduction: str, name: str) -> None:
    problem = make_problem(6)
    getattr(problem, name)[2] = math.nan
    ours = solve(problem, implementation, reduction, options=block_of(4, problem))
    expected = solve(problem, "reference", reduction)
    assert ours.loss.isnan().any()
    assert_same(ours, expected, equal_nan=True)
    if reduction == "none" and name in ("context", "prior_logits"):
        assert ours.loss.isnan().tolist() == [False, False, True, False, False, False]
        context = ours.gradients["context"]
        assert context is not None
        assert context[[0, 1, 3, 4, 5]].isfinite().all()


@every_implementation
def test_a_weight_of_zero_for_a_token_is_no_gradient(implementation: str) -> None:
    problem = make_problem(6)
    problem.upstream["none"][3] = 0
    context = solve(problem, implementation, "none").gradients["context"]
    assert context is not None
    assert not context[3].any()
    assert context[2].any()
