"""The parity protocol: identities in float64, and no worse than the naive program in every dtype."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from highrank.functional import LossOptions, mixture_cross_entropy, mixture_log_prob
from tests.implementations import block_of, every_fused, every_implementation, every_reduction
from tests.parity import (
    INPUTS,
    REDUCTIONS,
    SIZES,
    Problem,
    Size,
    assert_no_worse_than_naive,
    assert_same,
    make_problem,
    solve,
)


def by_hand(problem: Problem) -> list[float]:
    """-log p of each token, from sums of plain exponentials, one number at a time."""
    losses = []
    bias = problem.bias.tolist() if problem.bias is not None else [0.0] * len(problem.weight)
    weight = problem.weight.tolist()
    for contexts, priors, y in zip(
        problem.context.tolist(), problem.prior_logits.tolist(), problem.target.tolist(), strict=True
    ):
        probability = 0.0
        for context, prior in zip(contexts, priors, strict=True):
            scores = [
                math.exp(sum(c * w for c, w in zip(context, row, strict=True)) + b)
                for row, b in zip(weight, bias, strict=True)
            ]
            probability += math.exp(prior) / sum(map(math.exp, priors)) * scores[y] / sum(scores)
        losses.append(-math.log(probability))
    return losses


@every_implementation
@pytest.mark.parametrize("bias", [True, False])
def test_is_the_definition(implementation: str, bias: bool) -> None:
    problem = make_problem(6, bias=bias)
    losses = by_hand(problem)
    none, total, mean = (problem.loss(implementation=implementation, reduction=r).tolist() for r in REDUCTIONS)
    assert none == pytest.approx(losses, rel=1e-12)
    assert total == pytest.approx(sum(losses), rel=1e-12)
    assert mean == pytest.approx(sum(losses) / 6, rel=1e-12)


@every_implementation
@every_reduction
@pytest.mark.parametrize("bias", [True, False])
def test_one_component_is_cross_entropy(implementation: str, reduction: str, bias: bool) -> None:
    problem = make_problem(11, components=1, bias=bias)
    problem.target[3] = -100
    ours = solve(problem, implementation, reduction)
    leaves = {n: getattr(problem, n).clone().requires_grad_() for n in INPUTS if getattr(problem, n) is not None}
    logits = F.linear(leaves["context"].squeeze(-2), leaves["weight"], leaves.get("bias"))
    loss = F.cross_entropy(logits, problem.target, reduction=reduction)
    loss.backward(problem.upstream[reduction])
    torch.testing.assert_close(ours.loss, loss.detach(), rtol=1e-12, atol=1e-13)
    for name in leaves.keys() - {"prior_logits"}:
        torch.testing.assert_close(ours.gradients[name], leaves[name].grad, rtol=1e-11, atol=1e-13)
    prior_gradient = ours.gradients["prior_logits"]
    assert prior_gradient is not None
    assert prior_gradient.abs().max() < 1e-13  # one component has no choice


@every_implementation
@every_reduction
def test_the_order_of_components_means_nothing(implementation: str, reduction: str) -> None:
    problem, order = make_problem(9, components=4), torch.tensor([2, 0, 3, 1])
    ours = solve(problem, implementation, reduction)
    permuted = make_problem(9, components=4)
    permuted.context = permuted.context[:, order]
    permuted.prior_logits = permuted.prior_logits[:, order]
    other = solve(permuted, implementation, reduction)
    context, prior = ours.gradients["context"], ours.gradients["prior_logits"]
    assert context is not None
    assert prior is not None
    assert_same(
        other, ours._replace(gradients=ours.gradients | {"context": context[:, order], "prior_logits": prior[:, order]})
    )


@pytest.mark.parametrize("tokens_per_block", [1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_log_prob_is_the_definition_and_sums_to_one(tokens_per_block: int, bias: bool) -> None:
    problem = make_problem(5, 2, scale=4.0, bias=bias)
    log_prob = mixture_log_prob(
        problem.context,
        problem.prior_logits,
        problem.weight,
        bias=problem.bias,
        options=block_of(tokens_per_block, problem),
    )
    assert log_prob.shape == (5, 2, 7)
    assert not log_prob.requires_grad
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(5, 2, dtype=torch.float64), rtol=1e-13, atol=0)
    nll = -log_prob.gather(-1, problem.target.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(problem.loss(reduction="none", implementation="reference"), nll, rtol=1e-13, atol=1e-14)
    for word in range(7):  # the loss of every word, not only of the targets
        problem.target.fill_(word)
        torch.testing.assert_close(problem.loss(reduction="none", implementation="reference"), -log_prob[..., word])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_prob_sums_to_one_in_short_dtypes(dtype: torch.dtype) -> None:
    problem = make_problem(20, classes=500, scale=3.0, dtype=dtype)
    log_prob = mixture_log_prob(problem.context, problem.prior_logits, problem.weight, bias=problem.bias)
    sums = log_prob.double().exp().sum(-1)
    # log-probabilities near 10, rounded to 8, 11 or 24 bits
    assert (sums - 1).abs().max() < {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


def test_a_mixture_exceeds_the_rank_that_binds_one_softmax() -> None:
    features, tokens = 4, 60

    def singular_values(components: int) -> Tensor:
        problem = make_problem(tokens, components=components, features=features, classes=70, scale=3.0)
        log_prob = mixture_log_prob(problem.context, problem.prior_logits, problem.weight, bias=problem.bias)
        return torch.linalg.svdvals(log_prob)

    one, three = singular_values(1), singular_values(3)
    assert one[features + 1] > 1e-3 * one[0]  # the bias and the normaliser each add one to the rank
    assert one[features + 2] < 1e-13 * one[0]
    assert three[-1] > 1e-8 * three[0]  # the full rank


@every_implementation
@every_reduction
@pytest.mark.parametrize(
    ("tokens", "components", "features", "classes"), [(3, 3, 5, 7), (5, 1, 3, 5), (1, 5, 1, 3), (4, 2, 3, 1)]
)
def test_gradcheck(
    implementation: str, reduction: str, tokens: int, components: int, features: int, classes: int
) -> None:
    problem = make_problem(tokens, components=components, features=features, classes=classes)
    if tokens > 1:
        problem.target[1] = -100
    leaves = tuple(getattr(problem, name).requires_grad_() for name in INPUTS)

    def loss(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return mixture_cross_entropy(
            context,
            prior_logits,
            weight,
            problem.target,
            bias=bias,
            reduction=reduction,
            implementation=implementation,
            options=block_of(2, problem),
        )

    slow = implementation == "triton"  # in the interpreter
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-7, rtol=1e-6, fast_mode=slow)


@every_fused
@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_worse_than_naive(implementation: str, reduction: str, dtype: torch.dtype, size: Size) -> None:
    assert_no_worse_than_naive(size.problem(dtype), implementation, reduction)


def test_sums_in_float64_are_closer_to_the_truth() -> None:
    problem = make_problem(400, components=2, features=4, classes=50, dtype=torch.float32)
    truth = solve(problem.to(torch.float64), "reference", "sum").loss
    loose, tight = (
        solve(problem, "chunked", "sum", options=LossOptions(accumulation_dtype=d)).loss for d in (None, torch.float64)
    )
    assert tight.dtype == torch.float64
    assert (tight - truth).abs() < (loose - truth).abs()


@every_reduction
def test_auto_is_one_of_the_implementations(reduction: str) -> None:
    problem = make_problem(9)
    assert_same(solve(problem, "auto", reduction), solve(problem, "reference", reduction))
