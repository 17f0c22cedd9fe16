"""Labels that are smoothed: the loss is that of the definition, no worse in short dtypes, and stores no (N, K, V)."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import memory_of
from highrank import LossOptions, MixtureOfSoftmaxes, mixture_cross_entropy, mixture_statistics
from highrank.ops import chunked
from tests.implementations import every_implementation, every_reduction
from tests.parity import (
    INPUTS,
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

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def smoothed(problem: Problem, by: float = 0.1) -> Problem:
    return replace(problem, label_smoothing=by)


@pytest.fixture
def tiny_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a token or two."""
    monkeypatch.setattr(chunked, "STRIP_BYTES", 200)


@every_implementation
@every_reduction
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("by", [0.0, 0.1, 1.0])
def test_one_component_is_cross_entropy_as_pytorch_smooths_it(
    implementation: str, reduction: str, bias: bool, by: float
) -> None:
    problem = smoothed(make_problem(3, 5, components=1, bias=bias), by)
    problem.target[1, 2] = problem.ignore_index
    ours = solve(problem, implementation, reduction)
    leaves = {name: getattr(problem, name) for name in INPUTS if getattr(problem, name) is not None}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    logits = F.linear(leaves["context"].squeeze(-2), leaves["weight"], leaves.get("bias"))
    expected = F.cross_entropy(
        logits.flatten(0, 1), problem.target.flatten(), reduction=reduction, label_smoothing=by
    ).view(ours.loss.shape)
    expected.backward(problem.upstream[reduction])
    torch.testing.assert_close(ours.loss, expected.detach(), rtol=1e-12, atol=1e-13)
    for name, leaf in leaves.items():
        if name != "prior_logits":  # one component has all of it
            torch.testing.assert_close(ours.gradients[name], leaf.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours.gradients["prior_logits"], torch.zeros(3, 5, 1, dtype=torch.float64))


@every_implementation
def test_is_the_definition(implementation: str) -> None:
    problem = smoothed(make_problem(4, 6), 0.3)
    log_softmax = torch.log_softmax(problem.context @ problem.weight.t() + problem.bias, -1)
    log_prob = torch.logsumexp(torch.log_softmax(problem.prior_logits, -1).unsqueeze(-1) + log_softmax, -2)
    share = torch.full_like(log_prob, 0.3 / 7)
    share.scatter_(-1, problem.target.unsqueeze(-1), 0.7 + 0.3 / 7)
    loss = problem.loss(implementation=implementation, reduction="none")
    torch.testing.assert_close(loss, -(share * log_prob).sum(-1), rtol=1e-13, atol=1e-13)


@every_reduction
@pytest.mark.parametrize("tokens_per_block", [1, 3, 100])
@pytest.mark.usefixtures("tiny_strips")
def test_every_gradient_is_that_of_the_definition(reduction: str, tokens_per_block: int) -> None:
    problem = smoothed(make_problem(11, components=4, features=5, classes=9))
    problem.target[3] = problem.ignore_index
    options = LossOptions(block_bytes=tokens_per_block * 4 * 12 * 8)
    for needs in subsets(INPUTS):
        ours = solve(problem, "chunked", reduction, needs=needs, options=options)
        assert_same(ours, solve(problem, "reference", reduction, needs=needs))


def test_gradcheck() -> None:
    problem = make_problem(4)
    leaves = [getattr(problem, name).requires_grad_() for name in INPUTS]

    def loss(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return mixture_cross_entropy(
            context, prior_logits, weight, problem.target, bias=bias, reduction="none", label_smoothing=0.2
        )

    assert torch.autograd.gradcheck(loss, leaves)


@every_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_worse_than_naive(reduction: str, dtype: torch.dtype, size: Size) -> None:
    assert_no_worse_than_naive(smoothed(size.problem(dtype)), "chunked", reduction)


@every_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("tiny_strips")
def test_no_worse_in_small_blocks_and_strips(reduction: str, dtype: torch.dtype) -> None:
    options = LossOptions(block_bytes=6000)
    assert_no_worse_than_naive(smoothed(SIZES[0].problem(dtype)), "chunked", reduction, options)


@pytest.mark.parametrize("components", [1, 3])
def test_logits_of_ten_thousand(components: int) -> None:
    problem = smoothed(make_problem(12, components=components, classes=40, scale=1e4, dtype=torch.float32))
    assert_no_worse_than_naive(problem, "chunked", "none")
    assert solve(problem, "chunked", "none").loss.isfinite().all()


@pytest.mark.parametrize("components", [1, 3])
def test_a_class_that_is_not_there_makes_the_loss_infinite(components: int) -> None:
    """As in PyTorch: a part of the label is on it."""
    problem = smoothed(make_problem(5, components=components))
    assert problem.bias is not None
    problem.bias[3] = -math.inf
    problem.target.fill_(1)
    for implementation in ("reference", "chunked"):
        assert problem.loss(implementation=implementation, reduction="none").isposinf().all()


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("components", [1, 3])
def test_a_nan_is_not_swallowed(components: int, name: str) -> None:
    problem = smoothed(make_problem(5, components=components))
    getattr(problem, name).view(-1)[0] = math.nan
    assert problem.loss(reduction="none").isnan().any()


def test_a_component_without_a_prior_has_no_gradient() -> None:
    problem = smoothed(make_problem(5))
    problem.prior_logits[:, 1] = -math.inf
    ours = solve(problem, "chunked", "mean")
    assert_same(ours, solve(problem, "reference", "mean"))
    context = ours.gradients["context"]
    assert context is not None
    assert not context[:, 1].any()


@pytest.mark.parametrize("tokens", [0, 1])
@every_reduction
def test_no_token_and_one_token(reduction: str, tokens: int) -> None:
    problem = smoothed(make_problem(tokens))
    assert_same(solve(problem, "chunked", reduction), solve(problem, "reference", reduction), equal_nan=True)


@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_some_parts_of_a_block(components: int, dtype: torch.dtype) -> None:
    """The block, a strip, three of K parts of one; in half precision another strip, and the sum of the weight's
    gradient with a part of it."""
    tokens = 3000 // components
    problem = smoothed(make_problem(tokens, components=components, features=16, classes=4000, dtype=dtype))
    options = LossOptions(block_bytes=400_000)

    def call() -> None:
        for name in INPUTS:
            getattr(problem, name).grad = None
            getattr(problem, name).requires_grad_()
        problem.loss(options=options).backward()

    gradients = sum(getattr(problem, name).numel() for name in INPUTS) * dtype.itemsize
    blocks = 2 + (3 / components if components > 1 else 0)
    sums = 0
    if dtype != torch.float32:
        blocks += 1
        sums = 4 * problem.weight.numel() + 4 * problem.weight.numel()
    allowed = blocks * options.block_bytes + sums + 16 * 4 * 3000
    assert allowed < 3000 * 4000 * dtype.itemsize / 8, "sizes that show nothing"
    assert memory_of(call).peak_bytes - gradients <= allowed


def test_heads_and_statistics_hand_it_on() -> None:
    torch.manual_seed(1)
    head = MixtureOfSoftmaxes(8, 50, num_components=3)
    hidden, target = torch.randn(20, 8), torch.randint(50, (20,))
    log_prob = head.log_prob(hidden)
    expected = -0.8 * log_prob.gather(1, target.unsqueeze(1)).mean() - 0.2 * log_prob.mean()
    torch.testing.assert_close(head(hidden, target, label_smoothing=0.2), expected)
    torch.testing.assert_close(head.statistics(hidden, target, label_smoothing=0.2).loss, expected)


def test_statistics_are_those_of_the_target() -> None:
    problem = make_problem(6)
    arguments = (problem.context, problem.prior_logits, problem.weight, problem.target)
    plain = mixture_statistics(*arguments, bias=problem.bias)
    with_it = mixture_statistics(*arguments, bias=problem.bias, label_smoothing=0.5)
    assert with_it.loss != plain.loss
    for name in plain._fields[1:]:
        torch.testing.assert_close(getattr(with_it, name), getattr(plain, name))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan, "0.1", None])
def test_a_wrong_share_is_named(wrong: object) -> None:
    problem = make_problem(3)
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number from 0 to 1, got "):
        replace(problem, label_smoothing=wrong).loss()  # type: ignore[arg-type]


@pytest.mark.parametrize(("min_posterior", "by"), [(1e-3, 0.2), (0.02, 1e-3)])
@pytest.mark.parametrize("tokens_per_block", [7, 60])
def test_what_the_filter_leaves_out_stays_below_its_bound(
    min_posterior: float, by: float, tokens_per_block: int
) -> None:
    """With the identity as weight the gradient of the contexts is that of the logits."""
    problem = make_problem(60, components=6, features=30, classes=30, scale=5.0, bias=False)
    problem.prior_logits = problem.prior_logits * 16
    problem.target[::7] = -100
    problem.upstream["sum"].fill_(1)
    problem = smoothed(replace(problem, weight=torch.eye(30, dtype=torch.float64)), by)
    options = LossOptions(min_posterior=min_posterior, block_bytes=tokens_per_block * 6 * 32 * 8)
    exact, ours = (
        solve(problem, name, "sum", options=each) for name, each in (("reference", None), ("chunked", options))
    )
    assert ours.loss == pytest.approx(float(exact.loss), rel=1e-12)
    theirs, found = exact.gradients["context"], ours.gradients["context"]
    assert theirs is not None
    assert found is not None
    lost = (theirs - found).abs().sum((1, 2))
    assert 0.01 * min_posterior < lost.max() <= 2 * 5 * min_posterior + 1e-12
    torch.testing.assert_close(ours.gradients["prior_logits"], exact.gradients["prior_logits"], rtol=1e-12, atol=1e-13)


@every_reduction
@pytest.mark.parametrize("components", [1, 4])
def test_tokens_that_do_not_count_are_left_out(reduction: str, components: int) -> None:
    problem = smoothed(make_problem(60, components=components))
    problem.target[torch.arange(60) % 3 > 0] = -100
    problem.target[:12] = -100  # whole blocks
    options = LossOptions(block_bytes=4 * components * 8 * 8)
    assert_same(solve(problem, "chunked", reduction, options=options), solve(problem, "reference", reduction))
    problem.target[:] = -100
    assert_same(
        solve(problem, "chunked", reduction, options=options), solve(problem, "reference", reduction), equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_the_inputs_and_nothing_else(dtype: torch.dtype) -> None:
    problem = smoothed(make_problem(3, 4, dtype=torch.float32))
    leaves = [getattr(problem, name).requires_grad_() for name in INPUTS]
    with torch.autocast("cpu", dtype):
        loss = problem.loss()
    expected = solve(smoothed(make_problem(3, 4, dtype=torch.float32)).to(dtype), "chunked", "mean")
    upstream = problem.upstream["mean"].to(dtype).float()
    assert loss.equal(expected.loss)
    for name, gradient in zip(INPUTS, torch.autograd.grad(loss, leaves, upstream), strict=True):
        short = expected.gradients[name]
        assert short is not None
        assert gradient.equal(short.float())


def test_half_precision_keeps_the_gradients_of_components_that_matter_little() -> None:
    """What is rounded to float16 is a difference of distributions, not that times a small share of the label."""
    problem = smoothed(make_problem(40, components=3, features=8, classes=2000, dtype=torch.float32))
    problem.prior_logits[:, 1] -= 9
    small = problem.to(torch.float16)
    context = solve(small, "chunked", "sum").gradients["context"]
    truth = solve(small.to(torch.float64), "reference", "sum").gradients["context"]
    assert context is not None
    assert truth is not None
    wrong, right = context[:, 1].double(), truth[:, 1]
    assert (wrong - right).norm() < 2e-3 * right.norm()


def test_sums_in_float64_are_closer_to_the_truth() -> None:
    problem = smoothed(make_problem(500, components=3, features=8, classes=300, dtype=torch.float32))
    truth = solve(problem.to(torch.float64), "reference", "none")
    errors = [
        error(solve(problem, "chunked", "none", options=LossOptions(accumulation_dtype=dtype)).loss, truth.loss)
        for dtype in (torch.float64, torch.float32)
    ]
    assert errors[0] < errors[1]  # the largest of 500


def test_memory_layout_means_nothing() -> None:
    problem = smoothed(make_problem(4, 6))
    expected = solve(problem, "reference", "none")
    spread = replace(
        problem,
        context=problem.context.transpose(0, 1).contiguous().transpose(0, 1),
        weight=problem.weight.t().contiguous().t(),
        target=problem.target.t().contiguous().t(),
    )
    assert_same(solve(spread, "chunked", "none"), expected)


def test_a_target_out_of_range_raises() -> None:
    problem = smoothed(make_problem(6))
    problem.target[4] = 7
    with pytest.raises(ValueError, match="target: expected values from 0 to 6"):
        problem.loss()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning", "ignore::DeprecationWarning")
def test_a_batch_under_vmap_is_a_loop() -> None:
    problem = make_problem(4, 5)

    def loss(context: Tensor, prior_logits: Tensor, target: Tensor) -> Tensor:
        return mixture_cross_entropy(
            context, prior_logits, problem.weight, target, bias=problem.bias, label_smoothing=0.1
        )

    batch = (problem.context, problem.prior_logits, problem.target)
    one_by_one = torch.stack([loss(*each) for each in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(*batch), one_by_one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
@every_reduction
def test_it_compiles_without_a_graph_break(reduction: str) -> None:
    problem = make_problem(6, dtype=torch.float32)

    def loss(context: Tensor, smoothing: float) -> Tensor:
        return mixture_cross_entropy(
            context,
            problem.prior_logits,
            problem.weight,
            problem.target,
            bias=problem.bias,
            reduction=reduction,
            label_smoothing=smoothing,
        )

    torch.compiler.reset()  # what it has compiled of this for other reductions counts against a limit
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for smoothing in (0.1, 0.0, 0.3, 0.2):  # one that changes is no constant to the compiler
        found = []
        for function in (loss, compiled):
            leaf = problem.context.clone().requires_grad_()
            value = function(leaf, smoothing)
            found.append([value, *torch.autograd.grad(value, leaf, problem.upstream[reduction])])
        torch.testing.assert_close(found[1], found[0])
