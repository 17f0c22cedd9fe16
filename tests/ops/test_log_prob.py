"""Log-probabilities of all classes as an operator: exact gradients, bounded memory, compilers, and what is refused."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from benchmarks.harness import memory_of
from highrank.functional import LossOptions, mixture_log_prob
from highrank.heads import MixtureOfSoftmaxes
from highrank.ops import chunked, reference
from tests.implementations import block_of
from tests.parity import INPUTS, Problem, make_problem

SIZES = ((5, 3, 7), (1, 1, 7), (6, 1, 16), (0, 2, 7))  # tokens, components, classes


def leaves(problem: Problem, needs: tuple[bool, ...] = (True,) * 4) -> list[Tensor | None]:
    inputs = [getattr(problem, name) for name in INPUTS]
    return [
        None if x is None else x.detach().clone().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)
    ]


def gradients(log_prob: Tensor, inputs: list[Tensor | None], upstream: Tensor) -> list[Tensor | None]:
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(log_prob, wanted, upstream))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def both(problem: Problem, inputs: list[Tensor | None], options: LossOptions | None = None) -> tuple[Tensor, Tensor]:
    """Ours and the definition."""
    context, prior_logits, weight, bias = inputs
    assert context is not None
    assert prior_logits is not None
    assert weight is not None
    ours = mixture_log_prob(context, prior_logits, weight, bias=bias, options=options)
    return ours, reference.mixture_log_prob(context, prior_logits, weight, bias)


@pytest.mark.parametrize("tokens_per_block", [1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "components", "classes"), SIZES)
def test_gradients_are_those_of_the_definition(
    tokens: int, components: int, classes: int, bias: bool, tokens_per_block: int
) -> None:
    problem = make_problem(tokens, components=components, classes=classes, scale=4.0, bias=bias)
    inputs = leaves(problem)
    ours, theirs = both(problem, inputs, block_of(tokens_per_block, problem))
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for mine, yours in zip(gradients(ours, inputs, upstream), gradients(theirs, inputs, upstream), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("needs", [needs for needs in product((True, False), repeat=4) if any(needs)])
def test_every_subset_of_gradients(needs: tuple[bool, ...]) -> None:
    problem = make_problem(4, 2)
    inputs = leaves(problem, needs)
    ours, theirs = both(problem, inputs)
    upstream = torch.ones((), dtype=ours.dtype).expand_as(ours)  # as from a sum: no memory of its own
    mine, yours = gradients(ours, inputs, upstream), gradients(theirs, inputs, upstream)
    assert [x is not None for x in mine] == list(needs)
    torch.testing.assert_close([x for x in mine if x is not None], [x for x in yours if x is not None])


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_worse_than_the_definition_in_the_same_dtype(dtype: torch.dtype, components: int) -> None:
    exact = make_problem(40, components=components, features=24, classes=301, scale=2.0, dtype=dtype)
    upstream = torch.randn(40, 301, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = leaves(exact.to(torch.float64))
    truth = gradients(both(exact, wide)[1], wide, upstream)
    short = leaves(exact)
    ours, theirs = both(exact, short, LossOptions(block_bytes=20_000))
    found = [gradients(each, short, upstream.to(each.dtype)) for each in (ours, theirs)]
    for name, true, mine, naive in zip(INPUTS, truth, *found, strict=True):
        assert true is not None
        assert mine is not None
        assert naive is not None
        assert mine.dtype == dtype
        size = true.norm().item() or 1.0  # one component has its prior whatever the logit
        error, of_naive = ((x.double() - true).norm() / size for x in (mine, naive))
        assert error <= of_naive + 4 * torch.finfo(dtype).eps, name


def test_gradcheck() -> None:
    inputs = leaves(make_problem(3))
    assert torch.autograd.gradcheck(
        lambda context, prior_logits, weight, bias: mixture_log_prob(context, prior_logits, weight, bias=bias), inputs
    )


@pytest.mark.parametrize("components", [1, 3])
def test_a_class_that_is_not_there_has_no_gradient(components: int) -> None:
    problem = make_problem(5, components=components)
    assert problem.bias is not None
    problem.bias[[1, 4]] = -torch.inf
    inputs = leaves(problem)
    ours, _ = both(problem, inputs)
    assert ours[:, [1, 4]].eq(-torch.inf).all()
    there = ours.new_ones(7).index_fill_(0, torch.tensor([1, 4]), 0)
    found = gradients(ours, inputs, torch.ones_like(ours))  # asked for of those that are not there, too
    small = leaves(problem)
    keep = there.nonzero().squeeze(1)
    context, prior_logits, weight, bias = small
    assert context is not None
    assert prior_logits is not None
    assert weight is not None
    assert bias is not None
    without = reference.mixture_log_prob(context, prior_logits, weight[keep], bias[keep])
    wanted = gradients(without, small, torch.ones_like(without))
    torch.testing.assert_close(found, wanted)


def test_a_component_that_is_not_there_has_no_gradient() -> None:
    problem = make_problem(5, components=3)
    problem.prior_logits[:, 1] = -torch.inf
    inputs = leaves(problem)
    ours, theirs = both(problem, inputs)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    found = gradients(ours, inputs, upstream)
    torch.testing.assert_close(found, gradients(theirs, inputs, upstream))  # numbers, all of them
    assert found[0] is not None
    assert found[0][:, 1].eq(0).all()


@pytest.mark.parametrize("logit", [10.0, 100.0, 1e4])
def test_a_confident_token_is_as_exact_as_in_the_definition(logit: float) -> None:
    context, prior_logits, weight = (
        torch.full((1, 2, 1), logit),
        torch.tensor([[0.3, -0.2]]),
        torch.tensor([[1.0], [0]]),
    )

    def of(log_prob: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        of_context, of_prior, of_weight = (x.to(dtype) for x in (context, prior_logits, weight))
        found = log_prob(of_context, of_prior, of_weight.requires_grad_(), bias=None)
        (gradient,) = torch.autograd.grad(found[0, 0], of_weight)
        return found.detach().double(), gradient.double()

    truth = of(reference.mixture_log_prob, torch.float64)
    naive = of(reference.mixture_log_prob, torch.float32)
    ours = of(mixture_log_prob, torch.float32)
    assert ours[0].max() <= 0
    for true, mine, other in zip(truth, ours, naive, strict=True):
        assert (mine - true).abs().max() <= 2 * (other - true).abs().max() + 1e-7


def test_a_loss_of_all_classes_trains_a_head() -> None:
    torch.manual_seed(0)
    head = MixtureOfSoftmaxes(6, 11, num_components=3, context_features=4)
    teacher, hidden = torch.randn(40, 11).log_softmax(-1), torch.randn(40, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.kl_div(head.log_prob(hidden), teacher, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize(("dtype", "strips"), [(torch.float32, 1), (torch.bfloat16, 2)], ids=str)
def test_backward_stores_a_block_and_some_strips(
    dtype: torch.dtype, strips: int, components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two more have what all components of a token have once."""
    monkeypatch.setattr(chunked, "STRIP_BYTES", 80_000)
    problem = make_problem(1500 // components, components=components, features=4, classes=2000, dtype=dtype)
    inputs = leaves(problem)
    options = LossOptions(block_bytes=300_000)
    ours, _ = both(problem, inputs, options)
    wanted = [x for x in inputs if x is not None]
    upstream = torch.ones((), dtype=ours.dtype).expand_as(ours)
    used = memory_of(lambda: torch.autograd.grad(ours, wanted, upstream))
    own = sum(4 * x.numel() for x in wanted)
    packed = 0 if dtype == torch.float32 else 300_000  # oneDNN's copy of a weight, padded
    assert used.peak_bytes <= options.block_bytes + (strips + 2 / components) * 80_000 + 3 * own + packed
    assert used.peak_bytes < 4 * 1500 * 2000 / 10


def test_opcheck() -> None:
    problem = make_problem(7)
    how = (1000, torch.float64)
    ops = torch.ops.highrank
    torch.library.opcheck(ops.mixture_log_prob.default, (*leaves(problem), *how))
    inputs = leaves(problem, (False,) * 4)
    log_prob = ops.mixture_log_prob(*inputs, *how)
    arguments = (*inputs, *how, log_prob, torch.randn_like(log_prob), [True, False, True, True])
    torch.library.opcheck(ops.mixture_log_prob_gradients.default, arguments)


class LogProb(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = MixtureOfSoftmaxes(6, 23, num_components=3, context_features=5)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head.log_prob(hidden)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
def test_it_compiles_without_a_graph_break() -> None:
    torch.manual_seed(0)
    model, hidden = LogProb(), torch.randn(4, 3, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (4, 9):
        hidden = torch.randn(tokens, 3, 6)
        torch.testing.assert_close(compiled(hidden), model(hidden))
    compiled(hidden).pow(2).sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(hidden).pow(2).sum().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_it_is_exported_with_any_number_of_tokens(strict: bool) -> None:
    torch.manual_seed(0)
    model = LogProb().eval()
    tokens = torch.export.Dim("tokens", min=1, max=64)
    program = torch.export.export(model, (torch.randn(4, 6),), dynamic_shapes=({0: tokens},), strict=strict)
    hidden = torch.randn(9, 6)
    torch.testing.assert_close(program.module()(hidden), model(hidden))


def test_under_autocast_products_are_short_and_gradients_are_the_inputs() -> None:
    inputs = leaves(make_problem(5, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = both(make_problem(5), inputs)
        assert ours.dtype == torch.float32
    found = gradients(ours, inputs, torch.ones_like(ours))
    assert all(x is not None and x.dtype == torch.float32 for x in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
def test_what_is_not_supported_is_refused() -> None:
    context, prior_logits, weight, bias = leaves(make_problem(3))
    assert context is not None
    assert prior_logits is not None
    assert weight is not None
    log_prob = mixture_log_prob(context, prior_logits, weight, bias=bias)
    with pytest.raises(
        RuntimeError, match=r"the fused log-probability has no second derivative .*implementation='reference'"
    ):
        torch.autograd.grad(log_prob.sum(), [weight], create_graph=True)
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="the fused log-probability has no forward-mode derivative"),
    ):
        mixture_log_prob(forward_ad.make_dual(context, context), prior_logits, weight)
    with pytest.raises(RuntimeError, match=r"the fused log-probability has no torch\.func derivative"):
        torch.func.grad(lambda x: mixture_log_prob(x, prior_logits, weight).sum())(context)
    by_definition = mixture_log_prob(context, prior_logits, weight, bias=bias, implementation="reference")
    torch.testing.assert_close(by_definition, log_prob)
    [gradient] = torch.autograd.grad(
        by_definition.logsumexp(-1).sum() + by_definition[0, 0], [weight], create_graph=True
    )
    assert torch.autograd.grad(gradient.square().sum(), [weight])[0].count_nonzero() > 0
    with pytest.raises(ValueError, match="implementation: expected auto, reference, chunked, triton, got 'fast'"):
        mixture_log_prob(context, prior_logits, weight, implementation="fast")
