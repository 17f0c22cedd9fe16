"""The parity protocol: what requires a gradient, backward again and a second time, and any layout in memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import memory_of
from highrank.functional import LossOptions, mixture_cross_entropy
from highrank.ops import chunked
from highrank.ops.walk import Needs
from tests.implementations import block_of, every_fused, every_implementation, every_reduction
from tests.parity import INPUTS, REDUCTIONS, assert_same, make_problem, solve, subsets


@every_implementation
@every_reduction
@pytest.mark.parametrize("bias", [True, False])
def test_every_subset_of_gradients(implementation: str, reduction: str, bias: bool) -> None:
    problem = make_problem(8, bias=bias)
    problem.target[5] = -100
    names = INPUTS if bias else INPUTS[:-1]
    for needs in subsets(names):
        ours = solve(problem, implementation, reduction, needs=needs, options=block_of(3, problem))
        assert {name for name, gradient in ours.gradients.items() if gradient is not None} == set(needs)
        assert_same(ours, solve(problem, "reference", reduction, needs=needs))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("needs", subsets(INPUTS), ids=str)
def test_a_gradient_that_is_not_asked_for_costs_no_product(needs: tuple[str, ...], dtype: torch.dtype) -> None:
    problem = make_problem(8, dtype=dtype)
    inputs = (problem.context, problem.prior_logits, problem.weight, problem.bias)
    token_weight = torch.ones(8) if needs else None
    settings = LossOptions().settings(problem.context, problem.weight)
    with Products() as products:  # of one block
        chunked.walk(*inputs, problem.target, token_weight, Needs(*(name in needs for name in INPUTS)), settings)
    assert products.count == 1 + ("context" in needs) + ("weight" in needs)


@every_implementation
@every_reduction
def test_backward_twice(implementation: str, reduction: str) -> None:
    problem = make_problem(6)
    leaves = [getattr(problem, name).requires_grad_() for name in INPUTS]
    loss = problem.loss(implementation=implementation, reduction=reduction)
    upstream = problem.upstream[reduction]
    first = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, -3 * upstream)
    for one, three in zip(first, second, strict=True):
        torch.testing.assert_close(-3 * one, three)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves, upstream)


@every_fused
@every_reduction
@pytest.mark.parametrize("name", INPUTS)
def test_a_second_derivative_raises(implementation: str, reduction: str, name: str) -> None:
    """A gradient penalty must not be left out without a word."""
    problem = make_problem(6)
    leaf = getattr(problem, name).requires_grad_()
    loss = problem.loss(implementation=implementation, reduction=reduction)

    def with_penalty() -> None:
        (gradient,) = torch.autograd.grad(loss, leaf, problem.upstream[reduction], create_graph=True)
        (loss.sum() + gradient.pow(2).sum()).backward()

    with pytest.raises(RuntimeError, match=r"twice|second derivative|double backward"):
        with_penalty()


@every_fused
@every_reduction
def test_a_derivative_by_the_upstream_gradient_raises(implementation: str, reduction: str) -> None:
    problem = make_problem(6)
    problem.context.requires_grad_()
    loss = problem.loss(implementation=implementation, reduction=reduction)
    upstream = problem.upstream[reduction].requires_grad_()

    def twice() -> None:
        (gradient,) = torch.autograd.grad(loss, problem.context, upstream, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError, match=r"twice|second derivative|double backward"):
        twice()


def test_the_reference_has_a_second_derivative() -> None:
    problem = make_problem(4)
    leaves = [getattr(problem, name).requires_grad_() for name in INPUTS]

    def loss(*values: Tensor) -> Tensor:
        context, prior_logits, weight, bias = values
        return mixture_cross_entropy(
            context, prior_logits, weight, problem.target, bias=bias, implementation="reference"
        )

    assert torch.autograd.gradgradcheck(loss, leaves)


@every_implementation
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_without_grad_no_gradient_is_computed(implementation: str, reduction: str) -> None:
    problem = make_problem(40, features=64, classes=300)
    for name in INPUTS:
        getattr(problem, name).requires_grad_()
    with torch.no_grad():
        loss = problem.loss(implementation=implementation, reduction=reduction)
        assert not loss.requires_grad
        options = block_of(2, problem)
        used = memory_of(lambda: problem.loss(implementation=implementation, reduction=reduction, options=options))
    allowed = problem.weight.numel() * problem.weight.element_size()
    if implementation == "triton":
        allowed *= 2  # it has a copy of the weight, of round sizes
    assert implementation == "reference" or used.peak_bytes < allowed, "it made room for a gradient of the weight"


def transposed(x: Tensor) -> Tensor:
    """The same numbers, the first two dimensions swapped in memory."""
    swapped = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert x.numel() < 2 or not swapped.is_contiguous()
    return swapped


def spaced(x: Tensor) -> Tensor:
    """The same numbers, every second place of a larger tensor."""
    wide = x.new_full((*x.shape, 2), 7)
    wide[..., 0] = x
    return wide[..., 0]


@every_implementation
@every_reduction
def test_memory_layout_means_nothing(implementation: str, reduction: str) -> None:
    problem = make_problem(4, 6)
    expected = solve(make_problem(4, 6), "reference", reduction)
    problem.context, problem.prior_logits = transposed(problem.context), transposed(problem.prior_logits)
    problem.weight, problem.target = transposed(problem.weight), transposed(problem.target)
    assert problem.bias is not None
    problem.bias = spaced(problem.bias)
    problem.upstream["none"] = transposed(problem.upstream["none"])
    assert_same(solve(problem, implementation, reduction, options=block_of(5, problem)), expected)
    problem.context, problem.weight = spaced(problem.context), spaced(problem.weight)
    problem.target = spaced(problem.target)
    assert_same(solve(problem, implementation, reduction, options=block_of(5, problem)), expected)


@every_implementation
def test_an_expanded_upstream_gradient(implementation: str) -> None:
    """What .sum() and .mean() of the single losses send back has stride 0."""
    problem, other = make_problem(7), make_problem(7)
    for p in (problem, other):
        p.context.requires_grad_()
        p.weight.requires_grad_()
    problem.loss(implementation=implementation, reduction="none").mean().backward()
    other.loss(implementation="reference", reduction="mean").backward()
    torch.testing.assert_close(problem.context.grad, other.context.grad)
    torch.testing.assert_close(problem.weight.grad, other.weight.grad)


@every_implementation
@every_reduction
def test_leading_shapes(implementation: str, reduction: str) -> None:
    flat = solve(make_problem(12), implementation, reduction)
    for shape in ((3, 4), (2, 3, 2), (12, 1), (1, 12)):
        problem = make_problem(12)
        for name in ("context", "prior_logits", "target"):
            setattr(problem, name, getattr(problem, name).unflatten(0, shape))
        problem.upstream["none"] = problem.upstream["none"].unflatten(0, shape)
        shaped = solve(problem, implementation, reduction)
        assert shaped.loss.shape == (shape if reduction == "none" else ())
        for name in ("context", "prior_logits"):
            gradient = shaped.gradients[name]
            assert gradient is not None
            assert gradient.shape == getattr(problem, name).shape
            shaped.gradients[name] = gradient.flatten(0, len(shape) - 1)
        assert_same(shaped._replace(loss=shaped.loss.view(flat.loss.shape)), flat)


@every_implementation
def test_one_token_without_a_leading_dimension(implementation: str) -> None:
    problem, flat = make_problem(), make_problem(1)
    for name in ("context", "prior_logits", "target"):
        setattr(problem, name, getattr(flat, name)[0])
    problem.weight, problem.bias = flat.weight, flat.bias
    for reduction in REDUCTIONS:
        loss = problem.loss(implementation=implementation, reduction=reduction)
        assert loss.shape == ()
        torch.testing.assert_close(loss, flat.loss(implementation="reference", reduction="sum"))
