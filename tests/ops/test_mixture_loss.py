"""The parity protocol, for every implementation of the mixture's loss."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import memory_of
from highrank.functional import LossOptions, mixture_cross_entropy, mixture_log_prob
from highrank.ops import IMPLEMENTATIONS, triton
from tests.parity import (
    INPUTS,
    REDUCTIONS,
    SIZES,
    Problem,
    Size,
    assert_no_worse_than_naive,
    assert_same,
    error,
    make_problem,
    solve,
    subsets,
)

NO_TRITON = triton.cannot_run(torch.device("cpu"))
NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "triton" and NO_TRITON is not None, reason=f"triton: {NO_TRITON}")
    )
    for name in IMPLEMENTATIONS
]
every_implementation = pytest.mark.parametrize("implementation", NAMES)
every_fused = pytest.mark.parametrize("implementation", NAMES[1:])
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def block_of(tokens: int, problem: Problem) -> LossOptions:
    """A block that holds exactly so many tokens on the CPU, where rows are a multiple of 32 bytes long."""
    item = 4 if problem.context.element_size() == 2 else problem.context.element_size()
    row_bytes = -(-len(problem.weight) * item // 32) * 32
    return LossOptions(block_bytes=tokens * problem.context.shape[-2] * row_bytes)


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


# Identities -----------------------------------------------------------------------------------------------------------


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


# No worse than naive --------------------------------------------------------------------------------------------------


@every_fused
@every_reduction
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_worse_than_naive(implementation: str, reduction: str, dtype: torch.dtype, size: Size) -> None:
    assert_no_worse_than_naive(size.problem(dtype), implementation, reduction)


# Gradients ------------------------------------------------------------------------------------------------------------


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


# Edges ----------------------------------------------------------------------------------------------------------------


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


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="block_bytes: expected a positive number of bytes, got 0"):
        LossOptions(block_bytes=0)


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
@pytest.mark.parametrize("wrong", [7, -1, -100, 10**12])
def test_a_target_out_of_range_raises(implementation: str, wrong: int) -> None:
    problem = make_problem(2, 3)
    problem.ignore_index = -7
    problem.target[1, 0] = wrong
    with pytest.raises(ValueError, match=rf"target: expected values from 0 to 6 .*-7.* got {wrong} at position 3$"):
        problem.loss(implementation=implementation)


BAD_ARGUMENTS = {
    "context without components": (
        {"context": (5,)},
        r"context: expected shape \(\*, components, features\), got \(5,\)",
    ),
    "prior of other components": ({"prior_logits": (4, 2)}, r"prior_logits: expected shape \(4, 3\) .* got \(4, 2\)"),
    "prior of other tokens": ({"prior_logits": (3, 3)}, r"prior_logits: expected shape \(4, 3\) .* got \(3, 3\)"),
    "weight of other features": ({"weight": (7, 6)}, r"weight: expected shape \(classes, 5\) .* got \(7, 6\)"),
    "weight transposed": ({"weight": (5, 7)}, r"weight: expected shape \(classes, 5\) .* got \(5, 7\)"),
    "weight of one dimension": ({"weight": (5,)}, r"weight: expected shape \(classes, 5\) .* got \(5,\)"),
    "bias of other classes": ({"bias": (6,)}, r"bias: expected shape \(7,\), got \(6,\)"),
    "bias that would broadcast": ({"bias": (1,)}, r"bias: expected shape \(7,\), got \(1,\)"),
    "no class": ({"weight": (0, 5), "bias": (0,)}, r"at least one class .* weight \(0, 5\)"),
    "no component": ({"context": (4, 0, 5), "prior_logits": (4, 0)}, r"one component, got .* context \(4, 0, 5\)"),
}


@every_implementation
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_wrong_shape_is_named(implementation: str, case: str) -> None:
    shapes, message = BAD_ARGUMENTS[case]
    problem = make_problem(4)
    for name, shape in shapes.items():
        setattr(problem, name, torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        problem.loss(implementation=implementation)
    with pytest.raises(ValueError, match=message):
        mixture_log_prob(problem.context, problem.prior_logits, problem.weight, bias=problem.bias)


@every_implementation
def test_a_wrong_target_is_named(implementation: str) -> None:
    problem = make_problem(4)
    for shape in ((3,), (4, 1), ()):
        problem.target = torch.zeros(shape, dtype=torch.int64)
        got = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"target: expected shape \(4,\) .* got {got}"):
            problem.loss(implementation=implementation)
    for dtype in (torch.int32, torch.float64):
        problem.target = torch.zeros(4, dtype=dtype)
        with pytest.raises(ValueError, match=rf"target: expected int64, got {dtype}"):
            problem.loss(implementation=implementation)


@every_implementation
@pytest.mark.parametrize("name", ["prior_logits", "weight", "bias"])
def test_a_wrong_dtype_is_named(implementation: str, name: str) -> None:
    problem = make_problem(4)
    setattr(problem, name, getattr(problem, name).float())
    with pytest.raises(ValueError, match=f"{name}: expected torch.float64 .* got torch.float32"):
        problem.loss(implementation=implementation)


@every_implementation
@pytest.mark.parametrize("name", ["prior_logits", "weight", "bias", "target"])
def test_a_wrong_device_is_named(implementation: str, name: str) -> None:
    problem = make_problem(4)
    setattr(problem, name, getattr(problem, name).to("meta"))
    with pytest.raises(ValueError, match=rf"{name}: expected .*cpu like context, got .*meta"):
        problem.loss(implementation=implementation)


@every_implementation
def test_integers_are_refused(implementation: str) -> None:
    problem = make_problem(4).to(torch.int64)
    with pytest.raises(ValueError, match=r"context: expected a floating-point tensor, got torch\.int64"):
        problem.loss(implementation=implementation)


def test_a_wrong_choice_is_named() -> None:
    problem = make_problem(4)
    with pytest.raises(ValueError, match="reduction: expected none, mean or sum, got 'average'"):
        problem.loss(reduction="average")
    with pytest.raises(ValueError, match=r"implementation: expected auto, .*, got 'cuda'"):
        problem.loss(implementation="cuda")


@every_reduction
def test_auto_is_one_of_the_implementations(reduction: str) -> None:
    problem = make_problem(9)
    assert_same(solve(problem, "auto", reduction), solve(problem, "reference", reduction))


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


# Memory ---------------------------------------------------------------------------------------------------------------


def call(problem: Problem, implementation: str, reduction: str, options: LossOptions) -> None:
    for name in INPUTS:
        getattr(problem, name).grad = None
        getattr(problem, name).requires_grad_()
    loss = problem.loss(implementation=implementation, reduction=reduction, options=options)
    loss.backward(problem.upstream[reduction].to(loss.dtype))


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
    used = memory_of(lambda: call(problem, implementation, reduction, options))
    assert used.peak_bytes <= allowed
    assert used.largest_bytes <= max(options.block_bytes, inputs)


@every_fused
@every_reduction
def test_memory_does_not_grow_with_tokens_times_classes(implementation: str, reduction: str) -> None:
    """Twice the classes, or twice the tokens, costs what the inputs grew by."""
    options = LossOptions(block_bytes=500_000)

    def peak_beside_gradients(tokens: int, classes: int) -> float:
        problem = make_problem(tokens, components=5, features=8, classes=classes, dtype=torch.float32)
        _, inputs, numbers_NK = sizes(problem)
        return (
            memory_of(lambda: call(problem, implementation, reduction, options)).peak_bytes
            - 2 * inputs
            - 8 * numbers_NK
        )

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


def test_log_prob_stores_its_result_and_a_block() -> None:
    problem = make_problem(300, components=5, features=16, classes=2000, dtype=torch.float32)
    options = LossOptions(block_bytes=500_000)
    largest, _, numbers_NK = sizes(problem)
    used = memory_of(
        lambda: mixture_log_prob(
            problem.context, problem.prior_logits, problem.weight, bias=problem.bias, options=options
        )
    )
    assert used.peak_bytes <= largest / 5 + 4 * options.block_bytes + 8 * numbers_NK
    assert used.largest_bytes <= largest / 5
