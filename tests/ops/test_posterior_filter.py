"""The posterior filter: what it leaves out, and what stays as it is."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from highrank.functional import LossOptions, mixture_statistics
from highrank.ops import chunked
from tests.implementations import block_of, every_reduction
from tests.parity import INPUTS, Problem, assert_same, make_problem, solve, subsets


def concentrated(dtype: torch.dtype = torch.float64) -> Problem:
    """Posteriors from nearly one to less than 1e-18, and tokens that do not count."""
    problem = make_problem(60, components=6, features=8, classes=30, scale=3.0)
    problem.prior_logits = problem.prior_logits * 16
    problem.target[::7] = -100
    return problem.to(dtype)


def posteriors(problem: Problem) -> Tensor:
    found = mixture_statistics(
        problem.context, problem.prior_logits, problem.weight, problem.target.clamp(min=0), bias=problem.bias
    )
    return found.posterior


def logits_gradient_error(problem: Problem, options: LossOptions) -> Tensor:
    """L1 norm by token of what the filter takes from the gradient of the logits, for the sum of the losses.

    With the identity as weight the gradient of the contexts is that of the logits.
    """
    classes = len(problem.weight)
    logits = nn.functional.linear(problem.context, problem.weight, problem.bias)
    problem = Problem(
        logits,
        problem.prior_logits,
        torch.eye(classes, dtype=logits.dtype),
        None,
        problem.target,
        upstream={"sum": torch.tensor(1.0)},
    )
    exact, ours = (
        solve(problem, name, "sum", options=o).gradients["context"]
        for name, o in (("reference", None), ("chunked", options))
    )
    assert exact is not None
    assert ours is not None
    return (exact - ours).abs().sum((1, 2))


@pytest.mark.parametrize("min_posterior", [1e-9, 1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("tokens_per_block", [7, 60])
def test_what_the_filter_leaves_out_stays_below_its_bound(min_posterior: float, tokens_per_block: int) -> None:
    problem = concentrated()
    options = LossOptions(min_posterior=min_posterior, block_bytes=tokens_per_block * 6 * 30 * 8)
    lost = logits_gradient_error(problem, options)
    posterior = posteriors(problem)
    assert (posterior < min_posterior).double().mean() > 0.15, "a problem that shows nothing"
    # The stated bound, and the sharper one: twice the posteriors that were left out.
    assert lost.max() <= 2 * 5 * min_posterior + 1e-12
    left_out = posterior.where(posterior < min_posterior, 0).sum(1)
    assert (lost <= 2 * left_out + 1e-12).all()
    assert lost.max() > 0.01 * min_posterior, "nothing was left out"


def test_the_filter_leaves_the_loss_and_the_prior_alone() -> None:
    problem = concentrated()
    kept, filtered = (solve(problem, "chunked", "sum", options=LossOptions(min_posterior=m)) for m in (0.0, 0.05))
    assert filtered.loss.equal(kept.loss)
    prior, expected = filtered.gradients["prior_logits"], kept.gradients["prior_logits"]
    assert prior is not None
    assert expected is not None
    assert prior.equal(expected)
    weight, exact = filtered.gradients["weight"], kept.gradients["weight"]
    assert weight is not None
    assert exact is not None
    assert not weight.equal(exact)


@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_filter_as_it_stands_changes_nothing_beyond_rounding(dtype: torch.dtype, reduction: str) -> None:
    problem = concentrated(dtype)
    kept = solve(problem, "chunked", reduction, options=LossOptions(min_posterior=0.0))
    eps = torch.finfo(dtype).eps
    assert (posteriors(problem) < eps / 12).any(), "a problem that shows nothing"
    assert_same(solve(problem, "chunked", reduction), kept, rtol=0, atol=30 * eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_half_precision_products_have_few_shapes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every shape a program is kept in memory."""
    kept: list[int] = []
    whole: set[int] = set()
    steps: set[int] = set()

    def recorded(posterior_bK: Tensor, *arguments: Any) -> Tensor | None:
        found = kept_rows(posterior_bK, *arguments)
        if found is not None:
            kept.append(len(found))
            whole.add(posterior_bK.numel())
            steps.add(arguments[-1])
        return found

    kept_rows = chunked._kept_rows
    monkeypatch.setattr(chunked, "_kept_rows", recorded)
    problem = make_problem(600, components=6, features=128, classes=30, dtype=dtype)
    problem.prior_logits = problem.prior_logits * 16
    options, every_row = (replace(block_of(100, problem), min_posterior=each) for each in (1e-3, 0.0))
    filtered = solve(problem, "chunked", "sum", options=options)
    assert len(kept) > 10
    assert max(kept) < max(whole)
    [step] = steps
    assert step == (max(whole) // chunked.KEPT_NUMBERS if dtype == torch.bfloat16 else 1)
    assert {count % step for count in kept} == {0}
    assert len(set(kept)) > 5 or step > 1
    exact = solve(problem, "chunked", "sum", options=every_row)
    for name, gradient in filtered.gradients.items():
        expected = exact.gradients[name]
        assert gradient is not None
        assert expected is not None
        torch.testing.assert_close(gradient, expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())


@every_reduction
def test_rows_of_tokens_that_do_not_count_are_no_padding(reduction: str) -> None:
    """Half precision, where rows come in few numbers: no NaN of an ignored token reaches the weight."""
    problem = make_problem(200, components=4, features=128, classes=30, dtype=torch.bfloat16)
    problem.prior_logits = problem.prior_logits * 16
    problem.target[torch.arange(200) % 3 > 0] = -100
    problem.context[torch.arange(200) % 3 > 0] = torch.nan
    for min_posterior in (1e-3, 0.0):
        answer = solve(problem, "chunked", reduction, options=LossOptions(min_posterior=min_posterior))
        for name in ("context", "weight", "bias"):
            gradient = answer.gradients[name]
            assert gradient is not None
            assert gradient.isfinite().all(), name


@every_reduction
def test_rows_of_tokens_that_do_not_count_are_left_out_exactly(reduction: str) -> None:
    problem = make_problem(60)
    problem.target[torch.arange(60) % 3 > 0] = -100
    problem.upstream["none"][::6] = 0
    assert_same(
        solve(problem, "chunked", reduction, options=LossOptions(min_posterior=0.0)),
        solve(problem, "reference", reduction),
    )


@pytest.mark.parametrize("needs", subsets(INPUTS))
def test_the_filter_with_every_subset_of_gradients(needs: tuple[str, ...]) -> None:
    problem = concentrated()
    ours = solve(problem, "chunked", "none", needs=needs, options=LossOptions(min_posterior=1e-17))
    assert_same(ours, solve(problem, "reference", "none", needs=needs))
