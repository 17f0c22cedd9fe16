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


@every_implementation
@every_reduction
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_worse_than_naive(implementation: str, reduction: str, dtype: torch.dtype, size: Size) -> None:
    assert_no_worse_than_naive(smoothed(size.problem(dtype)), implementation, reduction)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("components", [1, 5])
def test_memory_is_some_blocks(components: int, dtype: torch.dtype) -> None:
    """The documented part: another 1 + 3 / K parts of a block, each no larger than it."""
    tokens = 2000 // components
    problem = smoothed(make_problem(tokens, components=components, features=16, classes=4000, dtype=dtype))
    options = LossOptions(block_bytes=400_000)

    def call() -> None:
        for name in INPUTS:
            getattr(problem, name).grad = None
            getattr(problem, name).requires_grad_()
        problem.loss(options=options).backward()

    numbers = sum(getattr(problem, name).numel() for name in INPUTS)
    short = dtype != torch.float32
    parts = 2 + 3 / components + 2 * short  # in half precision two more: the strip, and a part of the weight's gradient
    # Gradients, kept and scaled.
    allowed = parts * options.block_bytes + (2 + 4 * short) * numbers * dtype.itemsize + 16 * 4 * 2000
    assert allowed < 2000 * 4000 * 4 / 4, "sizes that show nothing"
    assert memory_of(call).peak_bytes <= allowed


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


def test_the_filter_cannot_leave_out_what_smoothing_needs() -> None:
    problem = smoothed(make_problem(3))
    with pytest.raises(ValueError, match=r"options: expected a min_posterior of None or 0 with label_smoothing.* 0.01"):
        problem.loss(options=LossOptions(min_posterior=0.01))
    problem.loss(options=LossOptions(min_posterior=0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
def test_it_compiles_without_a_graph_break() -> None:
    problem = smoothed(make_problem(6, dtype=torch.float32))

    def loss(context: Tensor) -> Tensor:
        return mixture_cross_entropy(
            context, problem.prior_logits, problem.weight, problem.target, bias=problem.bias, label_smoothing=0.1
        )

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = problem.context.clone().requires_grad_()
        value = function(leaf)
        found.append([value, *torch.autograd.grad(value, leaf)])
    torch.testing.assert_close(found[1], found[0])
