"""The fused loss as a PyTorch operator: compilers, checkpointing, distributed wrappers, and what is refused."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from highrank.functional import LossOptions, mixture_cross_entropy, mixture_statistics
from highrank.heads import MixtureOfSoftmaxes
from highrank.ops import operator
from tests.parity import INPUTS, REDUCTIONS, Problem, assert_same, make_problem, solve, subsets

every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
HOW = (-100, "chunked", 1000, torch.float64, 0.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", [(True,) * 4, (True, False, True, False), (False, True, False, True), (False,) * 4])
def test_opcheck(bias: bool, needs: tuple[bool, ...]) -> None:
    problem = make_problem(7, bias=bias)
    problem.target[2] = -100
    inputs = []
    for name, need in zip(INPUTS, needs, strict=True):
        x = getattr(problem, name)
        inputs.append(None if x is None else x.requires_grad_(need))
    asked = [x is not None and x.requires_grad for x in inputs]
    token_weight = problem.upstream["none"]
    torch.library.opcheck(operator._loss_sum, (*inputs, problem.target, *HOW, asked))
    torch.library.opcheck(operator._losses, (*inputs, problem.target, *HOW))
    detached = [None if x is None else x.detach() for x in inputs]
    torch.library.opcheck(operator._gradients, (*detached, problem.target, *HOW, token_weight, asked))


class Model(nn.Module):
    """Someone's own backbone that ends in the loss."""

    def __init__(self, reduction: str = "mean", *, checkpointed: bool = False) -> None:
        super().__init__()
        self.reduction, self.checkpointed = reduction, checkpointed
        self.backbone = nn.Sequential(nn.Linear(6, 10), nn.GELU())
        self.head = MixtureOfSoftmaxes(10, 23, num_components=3, context_features=5)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        hidden = self.backbone(x)
        if self.checkpointed:
            loss = checkpoint(self.loss, hidden, target, use_reentrant=False)
            assert isinstance(loss, Tensor)
            return loss
        return self.loss(hidden, target)

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        loss = self.head(hidden, target, reduction=self.reduction)
        assert isinstance(loss, Tensor)
        return loss


def batch(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 6, generator=generator), torch.randint(23, (tokens,), generator=generator)


def twins(reduction: str, **settings: bool) -> tuple[Model, Model]:
    torch.manual_seed(0)
    one, other = Model(reduction), Model(reduction, **settings)
    other.load_state_dict(one.state_dict())
    return one, other


def gradients(model: nn.Module, call: Callable[..., Tensor], tokens: int = 12) -> dict[str, Tensor]:
    model.zero_grad()
    loss = call(*batch(tokens))
    upstream = torch.rand(loss.shape, generator=torch.Generator().manual_seed(5)) + 0.5
    loss.backward(upstream)
    found = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach()} | {name: grad for name, grad in found.items() if grad is not None}


def assert_equal_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
@pytest.mark.filterwarnings("ignore::FutureWarning")
@every_reduction
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_ends_in_the_loss_compiles_without_a_graph_break(backend: str, reduction: str) -> None:
    torch._dynamo.reset()
    eager, model = twins(reduction)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for tokens in (12, 17, 23):  # the second length makes the compiler turn to symbols
        assert_equal_gradients(gradients(model, compiled, tokens), gradients(eager, eager, tokens))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*batch(12)), eager(*batch(12)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrong_target_is_named_in_a_compiled_model_too() -> None:
    torch._dynamo.reset()
    _, model = twins("mean")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, target = batch(12)
    target[3] = 23
    with pytest.raises(ValueError, match=r"target: expected values from 0 to 22 .* got 23 at position 3"):
        compiled(x, target)


@every_reduction
def test_activation_checkpointing(reduction: str) -> None:
    plain, checkpointed = twins(reduction, checkpointed=True)
    assert_equal_gradients(gradients(checkpointed, checkpointed), gradients(plain, plain))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of PyTorch's own decompositions
@every_reduction
def test_forward_mode_is_refused(reduction: str) -> None:
    problem = make_problem(5)

    def loss(context: Tensor) -> Tensor:
        return mixture_cross_entropy(
            context, problem.prior_logits, problem.weight, problem.target, bias=problem.bias, reduction=reduction
        )

    with pytest.raises(RuntimeError, match="forward-mode derivative"):
        torch.func.jvp(loss, (problem.context,), (torch.ones_like(problem.context),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(problem.context, torch.ones_like(problem.context))
        with pytest.raises(RuntimeError, match="forward-mode derivative"):
            loss(dual)


# Real workers ---------------------------------------------------------------------------------------------------------


def work(rank: int, world: int, wrapper: str, reduction: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{results}.store", rank=rank, world_size=world)
    try:
        _, model = twins(reduction)
        x, target = batch(12)
        part = slice(rank * 6, rank * 6 + 6)
        if wrapper == "ddp":
            wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.fsdp import fully_shard

            mesh = torch.distributed.init_device_mesh("cpu", (world,))
            fully_shard(model.head, mesh=mesh)
            wrapped = fully_shard(model, mesh=mesh)
        loss = wrapped(x[part], target[part])
        (loss.mean() if reduction == "none" else loss).backward()
        found = {}
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            assert grad is not None
            found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        torch.save(found, f"{results}.{rank}")
        torch.distributed.barrier()  # who leaves first would take the connection away from the other
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_two_workers_have_the_gradients_of_one(wrapper: str, reduction: str, tmp_path: Path) -> None:
    mp.spawn(work, (2, wrapper, reduction, str(tmp_path / "gradients")), nprocs=2)
    model, _ = twins("mean")
    model(*batch(12)).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for rank in range(2):
        found = torch.load(f"{tmp_path / 'gradients'}.{rank}", weights_only=True)
        assert found.keys() == expected.keys()
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-7)


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@every_reduction
def test_statistics_are_those_of_the_definition(implementation: str, reduction: str) -> None:
    problem = make_problem(3, 4)
    problem.context.requires_grad_()
    found = mixture_statistics(
        problem.context,
        problem.prior_logits,
        problem.weight,
        problem.target,
        bias=problem.bias,
        reduction=reduction,
        implementation=implementation,
    )
    prior = problem.prior_logits.softmax(-1)
    logits = nn.functional.linear(problem.context, problem.weight, problem.bias).detach()
    target = problem.target[..., None, None].expand(3, 4, 3, 1)
    likelihood = logits.softmax(-1).gather(-1, target).squeeze(-1)
    joint = prior * likelihood
    posterior = joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(found.prior, prior)
    torch.testing.assert_close(found.posterior, posterior)
    torch.testing.assert_close(found.component_log_prob, likelihood.log())
    torch.testing.assert_close(found.prior_entropy, -(prior * prior.log()).sum(-1))
    torch.testing.assert_close(found.posterior_entropy, -(posterior * posterior.log()).sum(-1))
    assert [x.requires_grad for x in found] == [True, False, False, False, False, False]
    torch.testing.assert_close(found.loss, problem.loss(reduction=reduction, implementation="reference"))
    (ours,) = torch.autograd.grad(found.loss.sum(), problem.context)
    (expected,) = torch.autograd.grad(
        problem.loss(reduction=reduction, implementation="reference").sum(), problem.context
    )
    torch.testing.assert_close(ours, expected)


# The posterior filter -------------------------------------------------------------------------------------------------


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


# Options --------------------------------------------------------------------------------------------------------------


def test_sums_in_float64_are_closer_to_the_truth() -> None:
    problem = make_problem(400, components=2, features=4, classes=50, dtype=torch.float32)
    truth = solve(problem.to(torch.float64), "reference", "sum").loss
    loose, tight = (
        solve(problem, "chunked", "sum", options=LossOptions(accumulation_dtype=d)).loss for d in (None, torch.float64)
    )
    assert tight.dtype == torch.float64
    assert (tight - truth).abs() < (loose - truth).abs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_bytes": 0}, "block_bytes: expected a positive number of bytes, got 0"),
        ({"accumulation_dtype": torch.bfloat16}, "accumulation_dtype: expected float32 or float64, got torch.bfloat16"),
        ({"min_posterior": -0.1}, r"min_posterior: expected a number from 0 to below 1, got -0\.1"),
        ({"min_posterior": 1.0}, r"min_posterior: expected a number from 0 to below 1, got 1\.0"),
        ({"min_posterior": math.nan}, "min_posterior: expected a number from 0 to below 1, got nan"),
    ],
)
def test_a_wrong_option_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossOptions(**arguments)


def test_sums_shorter_than_the_inputs_are_refused() -> None:
    problem = make_problem(3)
    with pytest.raises(ValueError, match=r"accumulation_dtype: expected at least torch\.float64 .* got torch\.float32"):
        problem.loss(options=LossOptions(accumulation_dtype=torch.float32))
