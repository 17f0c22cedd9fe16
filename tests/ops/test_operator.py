"""The fused loss as a PyTorch operator: compilers, checkpointing, distributed wrappers, and what is refused."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from highrank import mixture_cross_entropy, mixture_log_prob
from highrank.functional import FLOP_FORMULAS
from highrank.heads import MixtureOfSoftmaxes
from highrank.ops import operator, reference
from highrank.ops.target import sort_targets
from tests.implementations import every_reduction
from tests.parity import INPUTS, assert_wrong_targets_are_nan, make_problem

HOW = (-100, "chunked", 1000, torch.float64, 0.0)  # and the label smoothing


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", [(True,) * 4, (True, False, True, False), (False, True, False, True), (False,) * 4])
def test_opcheck(bias: bool, needs: tuple[bool, ...], smoothing: float) -> None:
    problem = make_problem(7, bias=bias)
    problem.target[2] = -100
    inputs = []
    for name, need in zip(INPUTS, needs, strict=True):
        x = getattr(problem, name)
        inputs.append(None if x is None else x.requires_grad_(need))
    asked = [x is not None and x.requires_grad for x in inputs]
    token_weight = problem.upstream["none"]
    ops = torch.ops.highrank
    torch.library.opcheck(ops.mixture_loss_sum.default, (*inputs, problem.target, *HOW, smoothing, asked))
    torch.library.opcheck(ops.mixture_losses.default, (*inputs, problem.target, *HOW, smoothing))
    detached = [None if x is None else x.detach() for x in inputs]
    torch.library.opcheck(
        ops.mixture_gradients.default, (*detached, problem.target, *HOW, smoothing, token_weight, asked)
    )


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrong_target_makes_the_definition_nan_where_it_cannot_be_looked_at() -> None:
    torch._dynamo.reset()
    problem = make_problem(4)
    problem.target[2] = 7
    compiled = torch.compile(lambda: problem.loss(implementation="reference", reduction="none"), backend="eager")
    assert compiled().isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_a_wrong_target_makes_loss_and_gradient_nan_where_it_cannot_be_looked_at(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_a_gpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return sort_targets(*arguments)

    for module in (operator, reference):
        monkeypatch.setattr(module, "sort_targets", as_on_a_gpu)
    assert_wrong_targets_are_nan(implementation, "cpu")


@every_reduction
def test_activation_checkpointing(reduction: str) -> None:
    plain, checkpointed = twins(reduction, checkpointed=True)
    assert_equal_gradients(gradients(checkpointed, checkpointed), gradients(plain, plain))


class Walks(TorchDispatchMode):
    """Counts the walks of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.highrank.mixture_loss_sum.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kept", "walks"), [([], 2), ([torch.ops.highrank.mixture_loss_sum.default], 1)])
def test_selective_checkpointing_walks_once(kept: list[Any], walks: int) -> None:
    plain, model = twins("mean")
    contexts = partial(create_selective_checkpoint_contexts, kept)

    def call(x: Tensor, target: Tensor) -> Tensor:
        loss = checkpoint(model, x, target, use_reentrant=False, context_fn=contexts)
        assert isinstance(loss, Tensor)
        return loss

    with Walks() as counted:
        found = gradients(model, call)
    assert counted.count == walks
    assert_equal_gradients(found, gradients(plain, plain))


# Shapes only ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_loss_trains_and_says_why_it_cannot() -> None:
    model, arguments = Model(), batch(5)
    exported = torch.export.export(model, arguments).module()
    exported(*arguments).backward()
    model(*arguments).backward()
    theirs = dict(exported.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad)
    with torch.no_grad():
        without = torch.export.export(model, arguments).module()
    with pytest.raises(RuntimeError, match="traced where no gradient was wanted, as under no_grad"):
        without(*arguments).backward()


@every_reduction
def test_on_the_meta_device_there_are_shapes(reduction: str) -> None:
    with torch.device("meta"):
        head = MixtureOfSoftmaxes(10, 23, num_components=3)
        hidden, target = torch.empty(2, 6, 10), torch.empty(2, 6, dtype=torch.int64)
    loss = head(hidden, target, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == ((2, 6) if reduction == "none" else ())
    assert all(p.grad is not None and p.grad.shape == p.shape for p in head.parameters())
    assert head.log_prob(hidden).shape == (2, 6, 23)
    assert head.statistics(hidden, target).posterior.shape == (2, 6, 3)


# Functional transforms ------------------------------------------------------------------------------------------------


def loss_of_context(reduction: str, implementation: str = "auto") -> tuple[Callable[[Tensor], Tensor], Tensor]:
    problem = make_problem(5)

    def loss(context: Tensor) -> Tensor:
        return replace(problem, context=context).loss(reduction=reduction, implementation=implementation)

    return loss, problem.context


@every_reduction
def test_functional_derivatives_are_refused(reduction: str) -> None:
    loss, context = loss_of_context(reduction)
    with pytest.raises(RuntimeError, match=r"no torch\.func derivative; use implementation='reference'"):
        torch.func.grad(lambda c: loss(c).sum())(context)
    with pytest.raises(RuntimeError, match=r"no torch\.func derivative"):
        torch.func.jacrev(loss)(context)
    reference, _ = loss_of_context(reduction, "reference")
    assert torch.func.jacrev(reference)(context).shape == (*loss(context).shape, *context.shape)
    # A transform for which the loss is a constant.
    factor = torch.tensor(2.0, dtype=torch.float64)
    assert torch.func.grad(lambda c: loss(context).sum() * c)(factor).equal(loss(context).sum())


@every_reduction
@pytest.mark.filterwarnings("ignore:.*performance drop")  # the second walk runs once for each
def test_a_batch_of_upstream_gradients(reduction: str) -> None:
    loss, context = loss_of_context(reduction)
    context.requires_grad_()
    upstream = torch.randn(3, *loss(context).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (batch,) = torch.autograd.grad(loss(context), context, upstream, is_grads_batched=True)
    for each, gradient in zip(upstream, batch, strict=True):
        (expected,) = torch.autograd.grad(loss(context), context, each)
        torch.testing.assert_close(gradient, expected)


# Forward mode ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of PyTorch's own decompositions
@every_reduction
def test_forward_mode_is_refused(reduction: str) -> None:
    loss, context = loss_of_context(reduction)
    with pytest.raises(RuntimeError, match="forward-mode derivative"):
        torch.func.jvp(loss, (context,), (torch.ones_like(context),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(context, torch.ones_like(context))
        with pytest.raises(RuntimeError, match="forward-mode derivative"):
            loss(dual)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_reduction
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_is_refused_in_a_compiled_function_too(backend: str, fullgraph: bool, reduction: str) -> None:
    torch._dynamo.reset()
    loss, context = loss_of_context(reduction)
    compiled = torch.compile(loss, fullgraph=fullgraph, backend=backend)
    torch.testing.assert_close(compiled(context), loss(context))  # a graph without tangents must not serve those with
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(context, torch.ones_like(context))
        with pytest.raises(RuntimeError, match="forward-mode"):  # from 2.14 on PyTorch says so itself
            compiled(dual)
    torch.testing.assert_close(compiled(context), loss(context))

    def directional_derivative(context: Tensor) -> tuple[Tensor, Tensor]:
        value, tangent = torch.func.jvp(loss, (context,), (torch.ones_like(context),))
        return value, tangent

    with pytest.raises(RuntimeError, match="forward-mode derivative"):
        torch.compile(directional_derivative, fullgraph=fullgraph, backend=backend)(context)


# Real workers ---------------------------------------------------------------------------------------------------------


def work(rank: int, world: int, wrapper: str, reduction: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{results}.store", rank=rank, world_size=world)
    _, model = twins(reduction)
    x, target = batch(12)
    part = slice(rank * 6, rank * 6 + 6)
    if wrapper == "ddp":
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = torch.distributed.init_device_mesh("cpu", (world,))
        hidden = torch.ones(2, 10)
        expected = model.head.log_prob(hidden)
        fully_shard(model.head, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
        for method in ("log_prob", "predict", "statistics"):
            register_fsdp_forward_method(model.head, method)
    loss = wrapped(x[part], target[part])
    (loss.mean() if reduction == "none" else loss).backward()
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None
        found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    torch.save(found, f"{results}.{rank}")
    if wrapper == "fsdp":  # the head alone, after the whole model
        torch.testing.assert_close(model.head.log_prob(hidden), expected)
        assert model.head.predict(hidden).equal(expected.argmax(-1))
        assert model.head.statistics(hidden, target[:2]).posterior.shape == (2, 3)
    torch.distributed.barrier()  # who leaves first would take the connection away from the other
    os._exit(0)  # as a worker of ours does: taking the process group down aborts a process now and then, its work done


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


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_batch_under_vmap_has_the_gradients_of_a_loop(implementation: str, reduction: str) -> None:
    problem = make_problem(4, 5)
    inputs = [problem.context, problem.prior_logits, problem.weight, problem.bias]
    leaves = [x.requires_grad_() for x in inputs if x is not None]
    context, prior_logits, weight, bias = leaves

    def loss(context: Tensor, prior_logits: Tensor, target: Tensor) -> Tensor:
        return mixture_cross_entropy(
            context, prior_logits, weight, target, bias=bias, implementation=implementation, reduction=reduction
        )

    batch = (context, prior_logits, problem.target)
    one_by_one = torch.stack([loss(*each) for each in zip(*batch, strict=True)])
    together = torch.func.vmap(loss)(*batch)
    torch.testing.assert_close(together, one_by_one)
    upstream = torch.randn(together.shape, dtype=together.dtype)
    wanted = torch.autograd.grad(one_by_one, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(together, leaves, upstream), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_definition_has_a_gradient_for_each_sample() -> None:
    problem = make_problem(4)

    def loss(context: Tensor, prior_logits: Tensor, target: Tensor) -> Tensor:
        return mixture_cross_entropy(context, prior_logits, problem.weight, target, implementation="reference")

    found = torch.func.vmap(torch.func.grad(loss))(problem.context, problem.prior_logits, problem.target)
    for index, gradient in enumerate(found):
        context = problem.context[index].clone().requires_grad_()
        loss(context, problem.prior_logits[index], problem.target[index]).backward()
        torch.testing.assert_close(gradient, context.grad)


def test_operations_can_be_counted() -> None:
    """One matrix product for the result and one each for the gradients of contexts and weight; a second walk has the
    first again, but that of the log-probabilities of one component."""

    def counted(compute: Callable[..., Tensor], *, learnt: tuple[str, ...], components: int = 3) -> float:
        problem = make_problem(7, components=components)
        inputs = [getattr(problem, name).requires_grad_(name in learnt) for name in INPUTS[:3]]
        tokens, components, features = problem.context.shape
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
            result = compute(*inputs, problem.target)
            if learnt:
                result.sum().backward()
        return counter.get_total_flops() / (2 * tokens * components * features * len(problem.weight))

    mean = partial(mixture_cross_entropy, implementation="chunked")
    each = partial(mean, reduction="none")
    assert counted(mean, learnt=()) == 1
    assert counted(mean, learnt=("context", "weight")) == 3
    assert counted(mean, learnt=("context", "prior_logits")) == 2
    assert counted(each, learnt=("context", "weight")) == 4

    def log_prob(context: Tensor, prior_logits: Tensor, weight: Tensor, _: Tensor) -> Tensor:
        return mixture_log_prob(context, prior_logits, weight)

    assert counted(log_prob, learnt=("weight",)) == 3
    assert counted(log_prob, learnt=("weight",), components=1) == 2
