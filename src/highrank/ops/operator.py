"""The fused loss as PyTorch operators: what compilers, checkpointing and distributed wrappers see of it.

Three operators, because what backward needs is known at different times:

- ``highrank::mixture_loss_sum``: one upstream gradient for all tokens, so forward computes the gradients in its only
  walk and keeps them (as much memory as the inputs that need one); backward scales them.
- ``highrank::mixture_losses``: a loss for each token. Their upstream gradients are known in backward only, so forward
  keeps its inputs and backward walks again: four matrix products instead of three. Also for the sum in float16, whose
  range an unscaled sum of gradients may leave: before it is rounded it must have been scaled.
- ``highrank::mixture_gradients``: that second walk.

Each has a fake implementation (shapes only), so that ``torch.compile`` traces through it without a graph break.

Not by ``torch.library.custom_op``: what it makes imports PyTorch's compiler at the first call, which takes as long as
importing PyTorch.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from highrank.ops import smoothed
from highrank.ops.autocast import without_autocast
from highrank.ops.table import WALKS
from highrank.ops.target import sort_targets
from highrank.ops.walk import Gradients, Needs, Settings

__all__ = [
    "FLOP_FORMULAS",
    "define",
    "fake_gradients",
    "for_inputs",
    "fused_loss",
    "outputs",
    "refuse_forward_mode",
    "refuse_functional_gradient",
    "refuse_second_derivative",
]

# For ``torch.utils.flop_counter.FlopCounterMode(custom_mapping=FLOP_FORMULAS)``, which sees an operator from outside.
# Filled by ``define``; not registered with PyTorch, whose counter takes Triton's compiler to import.
FLOP_FORMULAS: dict[Any, Callable[..., int]] = {}

INPUTS = "Tensor context, Tensor prior_logits, Tensor weight, Tensor? bias, Tensor target"
HOW = (
    "int ignore_index, str implementation, int block_bytes, ScalarType accumulation_dtype, float min_posterior, "
    "float label_smoothing"
)
NO_NEEDS = Needs(False, False, False, False)
WHAT = "the fused mixture loss"
INSTEAD = "; use implementation='reference'"  # of the function, or as an attribute of a head

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]  # what may have a gradient, in the order of Gradients and Needs


class How(NamedTuple):
    """``HOW``: what every operator is told beside its tensors."""

    ignore_index: int
    implementation: str
    settings: Settings


def _split(arguments: tuple[Any, ...]) -> tuple[Inputs, Tensor, How, tuple[Any, ...]]:
    """The arguments of an operator: inputs, target, how, and what only this one has."""
    how = How(arguments[5], arguments[6], Settings(*arguments[7:11]))
    return arguments[:4], arguments[4], how, arguments[11:]


def fused_loss(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    settings: Settings,
    summed: bool,
    *,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """The loss of each token (N), zero where ignored, or their sum; and log P(target | component) (N, K).

    See ``ops.walk.Walk`` for shapes. Only the loss is differentiable.
    """
    how = (ignore_index, implementation, *settings)
    inputs = (context, prior_logits, weight, bias)
    refuse_forward_mode(inputs)
    refuse_functional_gradient(inputs)
    if summed and context.dtype != torch.float16:
        # Below autograd an operator cannot know what requires a gradient, and under no_grad nothing does.
        needs = [torch.is_grad_enabled() and x is not None and _requires_grad(x) for x in inputs]
        loss, log_prob_NK, *_ = torch.ops.highrank.mixture_loss_sum(*inputs, target, *how, needs)
        return loss, log_prob_NK
    loss_N, log_prob_NK = torch.ops.highrank.mixture_losses(*inputs, target, *how)
    return loss_N.sum() if summed else loss_N, log_prob_NK


def _walk(
    inputs: Inputs, target: Tensor, how: How, token_weight: Tensor | None, needs: Needs
) -> tuple[Tensor, Tensor, Gradients]:
    """Loss (N), log P(target | component) (N, K) and the gradients of ``sum(token_weight * loss)``."""
    settings = how.settings
    safe_target_N, counts_N, wrong_N = sort_targets(target, inputs[2].shape[0], how.ignore_index)
    if token_weight is not None:
        token_weight = token_weight.masked_fill(~counts_N, 0).masked_fill_(wrong_N, torch.nan)
    arguments = (*inputs, safe_target_N, token_weight, needs, settings)
    if settings.label_smoothing:
        log_prob_NK, mean_log_prob_N, grads = smoothed.walk(*arguments)
    else:
        log_prob_NK, grads = WALKS[how.implementation](*arguments)
    log_prior_NK = torch.log_softmax(inputs[1].to(settings.accumulation_dtype), dim=1)
    loss_N = -torch.logsumexp(log_prior_NK + log_prob_NK, dim=1)
    if settings.label_smoothing:
        loss_N = (1 - settings.label_smoothing) * loss_N - settings.label_smoothing * mean_log_prob_N
    loss_N.masked_fill_(wrong_N, torch.nan).masked_fill_(~counts_N, 0)  # whatever an ignored token holds, NaN included
    return loss_N, log_prob_NK, grads


def outputs(grads: Gradients, inputs: Inputs) -> list[Tensor]:
    """The gradients as an operator returns them: in the inputs' dtypes, empty where there is none."""
    return [
        inputs[0].new_empty(0) if grad is None or x is None else grad.to(x.dtype).contiguous()
        for grad, x in zip(grads, inputs, strict=True)
    ]


def _fake_outputs(needs: Needs, inputs: Inputs) -> list[Tensor]:
    empty = (x.new_empty(x.shape) if x is not None and need else None for x, need in zip(inputs, needs, strict=True))
    return outputs(Gradients(*empty), inputs)


def _requires_grad(x: Tensor) -> bool:
    if not torch.compiler.is_compiling():
        # Under vmap it is the batch that may require a gradient, not what is seen of it.
        while torch._C._functorch.is_batchedtensor(x):
            x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def refuse_second_derivative(what: str = WHAT) -> None:
    # Grad mode is on in backward only under create_graph; the result would have no graph, and a penalty on the gradient
    # would vanish without a word.
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} has no second derivative (create_graph=True){INSTEAD}")


def refuse_forward_mode(inputs: Inputs, what: str = WHAT) -> None:
    # An operator without a rule for it would drop the tangents without a word. A compiler does not see those of the
    # arguments that it traces with, but it does trace again when a dual level is entered.
    unseen = torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if unseen or any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise RuntimeError(f"{what} has no forward-mode derivative{INSTEAD}")


def refuse_functional_gradient(inputs: Inputs, what: str = WHAT) -> None:
    # PyTorch would refuse too, but speak of the inside of an autograd.Function. (A compiler cannot ask this.)
    functional = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
    if functional and any(
        x is not None and x.requires_grad and torch._C._functorch.is_gradtrackingtensor(x) for x in inputs
    ):
        raise RuntimeError(f"{what} has no torch.func derivative{INSTEAD}")


def for_inputs(ctx: Any, grads: Any) -> tuple[Tensor | None, ...]:
    """A gradient for every argument of an operator; None for those without."""
    needs = ctx.needs_input_grad
    wanted = (grad if need else None for grad, need in zip(grads, needs[:4], strict=True))
    return (*wanted, *[None] * (len(needs) - 4))


def _count_products(
    context: Sequence[int],
    prior_logits: Sequence[int],
    weight: Sequence[int],
    *others: Any,
    logits_of_one: bool = True,
    **_: Any,
) -> int:
    """Operations of the matrix products, from the shapes of an operator's arguments; of all rows, filtered or not."""
    tokens, components, features = context
    needs = Needs(*others[-1]) if isinstance(others[-1], list) else NO_NEEDS
    logits = logits_of_one or components > 1
    return 2 * tokens * components * features * weight[0] * (logits + needs.context + needs.weight)


def define(
    name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], *, logits_of_one: bool = True
) -> None:
    """``torch.ops.highrank.NAME`` is ``kernel`` on every device, and ``fake`` where only shapes are asked for.

    ``logits_of_one``: does it compute logits where there is one component too?
    """
    # A compiler whose graph broke before the operator would try to compile what is in it. Where nobody has imported it
    # nobody compiles, and the first call of this (as of torch.compiler.disable itself) would import it.
    untraced = _disable_dynamo(kernel)

    def run(*arguments: Any) -> Any:
        with without_autocast(arguments[0].device.type):  # of backward: it may be called where autocast is on
            return untraced(*arguments) if "torch._dynamo" in sys.modules else kernel(*arguments)

    torch.library.define(f"highrank::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"highrank::{name}", "default", run)
    torch.library.register_fake(f"highrank::{name}", fake)
    FLOP_FORMULAS[getattr(torch.ops.highrank, name)] = partial(_count_products, logits_of_one=logits_of_one)


# One loss for all tokens ----------------------------------------------------------------------------------------------


def _loss_sum(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, target, how, (needs,) = _split(arguments)
    token_weight = target.new_ones(target.shape, dtype=how.settings.accumulation_dtype) if any(needs) else None
    loss_N, log_prob_NK, grads = _walk(inputs, target, how, token_weight, Needs(*needs))
    return loss_N.sum(), log_prob_NK, *outputs(grads, inputs)


def _fake_loss_sum(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, _, how, (needs,) = _split(arguments)
    log_prob_NK = inputs[1].new_empty(inputs[1].shape, dtype=how.settings.accumulation_dtype)
    return log_prob_NK.new_empty(()), log_prob_NK, *_fake_outputs(Needs(*needs), inputs)


define(
    "mixture_loss_sum",
    f"({INPUTS}, {HOW}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _loss_sum,
    _fake_loss_sum,
)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or backward gets zeros as large as the gradients, for outputs that have none
    ctx.save_for_backward(*output[2:])
    ctx.computed = inputs[-1]


def _scale_gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * len(ctx.needs_input_grad)
    refuse_second_derivative()
    if any(need and not computed for need, computed in zip(ctx.needs_input_grad[:4], ctx.computed, strict=True)):
        raise RuntimeError(
            f"{WHAT} was traced where no gradient was wanted, as under no_grad: export it with grad mode on"
        )
    # Rounded to half precision the factor would tilt all gradients. A CPU does not round one without dimensions; a GPU
    # does, unless it has one, and needs no copy in the longer dtype then.
    factor = upstream if upstream.device.type == "cpu" else upstream.view(1)
    if _is_plain(upstream) and _is_last_backward():  # nobody else has seen these tensors, and nobody will
        return for_inputs(ctx, [grad.mul_(factor) for grad in ctx.saved_tensors])
    return for_inputs(ctx, [(grad * factor).to(grad.dtype) for grad in ctx.saved_tensors])


def _is_plain(upstream: Tensor) -> bool:
    """Neither a tracer's tensor (what it records must not write into what it saved) nor, under vmap, a batch of them,
    for whose products a gradient has no room."""
    if type(upstream) is not Tensor:
        return False
    functorch = torch._C._functorch
    return not (functorch.is_functorch_wrapped_tensor(upstream) or functorch.is_legacy_batchedtensor(upstream))


def _is_last_backward() -> bool:
    """Will the graph be freed after this pass? False where that cannot be known."""
    # What PyTorch's own compiled backward asks before it writes into what it saved; absent, a copy is made.
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps_graph is not None and not keeps_graph()


torch.library.register_autograd("highrank::mixture_loss_sum", _scale_gradients, setup_context=_keep_gradients)


# A loss for each token ------------------------------------------------------------------------------------------------


def _losses(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, target, how, _ = _split(arguments)
    loss_N, log_prob_NK, _ = _walk(inputs, target, how, None, NO_NEEDS)
    return loss_N, log_prob_NK


def _fake_losses(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, target, how, _ = _split(arguments)
    log_prob_NK = inputs[1].new_empty(inputs[1].shape, dtype=how.settings.accumulation_dtype)
    return log_prob_NK.new_empty(target.shape), log_prob_NK


define("mixture_losses", f"({INPUTS}, {HOW}) -> (Tensor, Tensor)", _losses, _fake_losses)


def _gradients(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, target, how, (token_weight, needs) = _split(arguments)
    _, _, grads = _walk(inputs, target, how, token_weight, Needs(*needs))
    return tuple(outputs(grads, inputs))


def fake_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    """Of an operator whose first arguments are the inputs, and whose last says which of them want a gradient."""
    return tuple(_fake_outputs(Needs(*arguments[-1]), arguments[:4]))


define(
    "mixture_gradients",
    f"({INPUTS}, {HOW}, Tensor token_weight, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    fake_gradients,
)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.how = inputs[5:]


def _walk_again(ctx: Any, upstream_N: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream_N is None:
        return (None,) * len(ctx.needs_input_grad)
    refuse_second_derivative()
    needs = list(ctx.needs_input_grad[:4])
    grads = torch.ops.highrank.mixture_gradients(*ctx.saved_tensors, *ctx.how, upstream_N, needs)
    return for_inputs(ctx, grads)


torch.library.register_autograd("highrank::mixture_losses", _walk_again, setup_context=_keep_inputs)
