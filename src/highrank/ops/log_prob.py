"""Log-probabilities of all classes (N, V), and their gradients, block by block: (N, K, V) is never stored.

For one token, with the upstream gradient G[v] of log p(v) and the posterior r_k[v] = P(component k | class v),

    log p(v)             = logsumexp_k( log pi_k + z_k[v] - lse_k )
    g_k[v]               = G[v] * r_k[v],   mass_k = sum_v g_k[v]
    d / d z_k[v]         = g_k[v] - mass_k * softmax(z_k)[v]
    d / d prior_logits_k = mass_k - pi_k * sum_j mass_j

Backward keeps the inputs and the result, and computes the logits of each block again: four matrix products in all. Of
one component the result says enough, softmax(z) being exp(log p): three.
"""

from typing import Any

import torch
from torch import Tensor

from highrank.ops.chunked import (
    add_products,
    block_buffer,
    logits_of,
    new_gradients,
    strip_buffer,
    strip_like,
    strip_rows,
    strips,
)
from highrank.ops.operator import (
    define,
    fake_gradients,
    for_inputs,
    outputs,
    refuse_forward_mode,
    refuse_functional_gradient,
    refuse_second_derivative,
)
from highrank.ops.walk import Gradients, Needs, Settings

__all__ = ["fused_log_prob"]

WHAT = "the fused log-probability"
ARGUMENTS = (
    "Tensor context, Tensor prior_logits, Tensor weight, Tensor? bias, int block_bytes, ScalarType accumulation_dtype"
)


def fused_log_prob(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings
) -> Tensor:
    """(N, V) in the accumulation dtype, differentiable, of context (N, K, D), prior_logits (N, K), weight (V, D) and
    bias (V)."""
    inputs = (context, prior_logits, weight, bias)
    refuse_forward_mode(inputs, WHAT)
    refuse_functional_gradient(inputs, WHAT)
    log_prob_NV: Tensor = torch.ops.highrank.mixture_log_prob(
        *inputs, settings.block_bytes, settings.accumulation_dtype
    )
    return log_prob_NV


def _log_prob(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, block_bytes: int, dtype: torch.dtype
) -> Tensor:
    tokens, components, features = context.shape
    classes, settings = weight.shape[0], Settings(block_bytes, dtype, 0.0)
    buffer_RU = block_buffer(context, weight, settings)
    strip_SU = strip_buffer(buffer_RU, components, settings)
    most = strip_rows(buffer_RU, components, settings)
    block = len(buffer_RU) // components
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    log_prob_NV = context.new_empty((tokens, classes), dtype=dtype)
    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        block_RU = logits_of(context_RD, weight, bias, buffer_RU[: len(context_RD)])
        for rows, wide_RU in strips(block_RU, strip_SU, write=False, most=most):
            some = slice(start + rows.start // components, start + rows.stop // components)
            logits_sKV = wide_RU.view(-1, components, wide_RU.shape[1])[..., :classes]  # s = tokens in strip
            # Without their largest first: what is added to large logits is rounded as they are.
            logits_sKV.sub_(logits_sKV.amax(dim=2, keepdim=True))
            # log pi_k - lse_k is one number a row, so the components are joined by one logsumexp over K.
            shift_sK1 = log_prior_NK[some].unsqueeze(2) - logits_sKV.exp().sum(dim=2, keepdim=True).log_()
            joint_sKV = logits_sKV.add_(shift_sK1)
            log_prob_NV[some] = joint_sKV.squeeze(1) if components == 1 else joint_sKV.logsumexp(dim=1)
    return log_prob_NV


def _fake_log_prob(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, block_bytes: int, dtype: torch.dtype
) -> Tensor:
    return context.new_empty((context.shape[0], weight.shape[0]), dtype=dtype)


define("mixture_log_prob", f"({ARGUMENTS}) -> Tensor", _log_prob, _fake_log_prob)


def _gradients(*arguments: Any) -> tuple[Tensor, ...]:
    context, prior_logits, weight, bias, block_bytes, dtype, log_prob_NV, upstream_NV, needs = arguments
    settings = Settings(block_bytes, dtype, 0.0)
    grads = _walk(context, prior_logits, weight, bias, settings, log_prob_NV, upstream_NV, Needs(*needs))
    return tuple(outputs(grads, (context, prior_logits, weight, bias)))


define(
    "mixture_log_prob_gradients",
    f"({ARGUMENTS}, Tensor log_prob, Tensor upstream, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    fake_gradients,
    logits_of_one=False,
)


def _walk(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: Settings,
    log_prob_NV: Tensor,
    upstream_NV: Tensor,
    needs: Needs,
) -> Gradients:
    """The gradients of ``(upstream * log_prob).sum()``."""
    tokens, components, features = context.shape
    classes, dtype = weight.shape[0], settings.accumulation_dtype
    buffer_RU = block_buffer(context, weight, settings)
    block = len(buffer_RU) // components
    grad_SU = strip_like(buffer_RU, components, settings)
    strip_SU = torch.empty_like(grad_SU) if buffer_RU.dtype != dtype else None
    prior_logits_NK = prior_logits.to(dtype)
    log_prior_NK1 = torch.log_softmax(prior_logits_NK, dim=-1).unsqueeze(2)
    mass_NK = prior_logits_NK.new_empty(prior_logits.shape)
    grads = new_gradients(context, weight, needs, dtype)
    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        block_RU = buffer_RU[: len(context_RD)]
        if components > 1:
            logits_of(context_RD, weight, bias, block_RU)
        for rows, wide_RU in strips(block_RU, strip_SU, read=components > 1, write=True, most=len(grad_SU)):
            some = slice(start + rows.start // components, start + rows.stop // components)  # s = tokens in strip
            logits_sKV, grad_sKV = (
                x.view(-1, components, x.shape[1])[..., :classes] for x in (wide_RU, grad_SU[: len(wide_RU)])
            )
            log_prob_s1V, upstream_s1V = log_prob_NV[some].unsqueeze(1), upstream_NV[some].unsqueeze(1)
            if components == 1:
                prob_sKV = _of_one(log_prob_s1V, upstream_s1V, logits_sKV, grad_sKV)
            else:
                prob_sKV = _of_several(log_prob_s1V, upstream_s1V, logits_sKV, log_prior_NK1[some], grad_sKV)
            mass_sK1 = grad_sKV.sum(dim=2, keepdim=True)
            mass_NK[some] = mass_sK1.squeeze(2)
            torch.addcmul(grad_sKV, prob_sKV, mass_sK1, value=-1, out=prob_sKV)
        grad_RV, grad_context_RD = block_RU[:, :classes], None
        if grads.context is not None:
            grad_context_RD = grads.context[part].view(-1, features)
        add_products(grad_RV, None, context_RD, weight, grad_context_RD, grads, strip_SU)
    if needs.prior_logits:
        prior_NK = torch.softmax(prior_logits_NK, dim=-1)
        grads = grads._replace(prior_logits=mass_NK - prior_NK * mass_NK.sum(dim=1, keepdim=True))
    return grads


def _of_one(log_prob_s1V: Tensor, upstream_s1V: Tensor, room_s1V: Tensor, grad_s1V: Tensor) -> Tensor:
    """Its probabilities, in ``room_s1V``; ``grad_s1V`` becomes g. A class of no probability has none."""
    grad_s1V.copy_(upstream_s1V).masked_fill_(log_prob_s1V == -torch.inf, 0)
    return torch.exp(log_prob_s1V, out=room_s1V)


def _of_several(
    log_prob_s1V: Tensor, upstream_s1V: Tensor, logits_sKV: Tensor, log_prior_sK1: Tensor, grad_sKV: Tensor
) -> Tensor:
    """Their probabilities, in the place of their logits; ``grad_sKV`` becomes g_k."""
    logits_sKV.sub_(logits_sKV.amax(dim=2, keepdim=True))  # as in ``_log_prob``
    log_sum_sK1 = torch.exp(logits_sKV, out=grad_sKV).sum(dim=2, keepdim=True).log_()
    # A class of no probability: as in logsumexp, its gradient is zero, not the difference of two infinities.
    torch.sub(logits_sKV, log_prob_s1V.masked_fill(log_prob_s1V == -torch.inf, 0), out=grad_sKV)
    # The posterior of every class. A component of no probability has none, and its own probabilities are numbers.
    grad_sKV.add_(log_prior_sK1 - log_sum_sK1).exp_().mul_(upstream_s1V)
    return logits_sKV.sub_(log_sum_sK1).exp_()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4], output)
    ctx.how = inputs[4:]


def _backward(ctx: Any, upstream_NV: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream_NV is None:
        return (None,) * len(ctx.needs_input_grad)
    refuse_second_derivative(WHAT)
    *inputs, log_prob_NV = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    grads = torch.ops.highrank.mixture_log_prob_gradients(*inputs, *ctx.how, log_prob_NV, upstream_NV, needs)
    return for_inputs(ctx, grads)


torch.library.register_autograd("highrank::mixture_log_prob", _backward, setup_context=_keep)
