"""The loss block by block in pure PyTorch: bounded memory, at the speed of the matrix products, on any device.

For one token with target y and z_k = context_k @ weight.T + bias,

    log p(y) = logsumexp_k( log pi_k + z_k[y] - lse_k ),   lse_k = logsumexp_v z_k[v]
    r_k      = exp( log pi_k + z_k[y] - lse_k - log p(y) )                        (posterior of component k)
    d(-log p)/d z_k[v]         = r_k * ( softmax(z_k)[v] - 1{v = y} )
    d(-log p)/d prior_logits_k = pi_k - r_k

so the gradient of a block is known as soon as its forward is, from the same logits: three matrix products a block and
nothing of size (N, K, V). See docs/mathematics.md for the derivation.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from highrank.ops.options import LossOptions

__all__ = ["mixture_log_prob", "mixture_loss"]


class Gradients(NamedTuple):
    """d(sum of weighted losses) for each input; None for one that was not asked for."""

    context: Tensor | None
    prior_logits: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _walk(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    options: LossOptions,
    token_weight: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """One walk over blocks of tokens: the loss of each token (N) and the gradients of ``sum(token_weight * loss)``.

    With ``needs`` all False only the loss is computed, at the price of one matrix product.
    """
    tokens, components, features = context.shape
    classes = weight.shape[0]
    dtype = _accumulation_dtype(weight.dtype)
    block = min(options.tokens_per_block(components, classes, dtype.itemsize), max(tokens, 1))
    need_context, need_prior, need_weight, need_bias = needs
    need_logits_gradient = need_context or need_weight or need_bias

    loss_N = context.new_empty(tokens, dtype=dtype)
    grads = Gradients(
        context.new_empty(context.shape) if need_context else None,
        prior_logits.new_empty(prior_logits.shape) if need_prior else None,
        weight.new_zeros(weight.shape, dtype=dtype) if need_weight else None,
        weight.new_zeros(classes, dtype=dtype) if need_bias else None,
    )
    counts_N = target != ignore_index
    target_N = target.where(counts_N, 0)
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    buffer_RV = context.new_empty((block * components, classes), dtype=dtype)  # R = rows = tokens in block * K

    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        target_R1 = target_N[part].repeat_interleave(components).unsqueeze(1)
        logits_RV = _logits(context_RD, weight, bias, buffer_RV[: len(context_RD)])

        # exp and sum in place on a block that stays in cache; the division by the sum is left to small factors below.
        target_logit_R = logits_RV.gather(1, target_R1).squeeze(1)
        max_R1 = logits_RV.amax(dim=1, keepdim=True)
        unnormalised_RV = logits_RV.sub_(max_R1).exp_()
        sum_R = unnormalised_RV.sum(dim=1)
        log_prob_R = target_logit_R - max_R1.squeeze(1) - sum_R.log()

        joint_bK = log_prior_NK[part] + log_prob_R.view(-1, components)
        log_prob_b1 = joint_bK.logsumexp(dim=1, keepdim=True)
        loss_N[part] = -log_prob_b1.squeeze(1)
        if token_weight is None:
            continue

        token_weight_b1 = token_weight[part].unsqueeze(1).to(dtype)
        posterior_bK = (joint_bK - log_prob_b1).exp_()
        if grads.prior_logits is not None:
            grads.prior_logits[part] = (log_prior_NK[part].exp() - posterior_bK) * token_weight_b1
        if not need_logits_gradient:
            continue
        # The gradient of the logits is row_weight * (unnormalised / sum - onehot(target)). The target's entry is put
        # in place, one a row (so no atomic additions, whose order would change bits); the factors row_weight / sum are
        # left to the small side of each product, which saves a pass over the block.
        row_weight_R1 = (posterior_bK * token_weight_b1).view(-1, 1)
        sum_R1 = sum_R.unsqueeze(1)
        if dtype != weight.dtype:
            unnormalised_RV.div_(sum_R1)  # but a sum may be too large for float16
            sum_R1 = torch.ones_like(sum_R1)
        unnormalised_RV.scatter_(1, target_R1, unnormalised_RV.gather(1, target_R1) - sum_R1)
        factor_R1 = row_weight_R1 / sum_R1
        low_RV = unnormalised_RV.to(weight.dtype)
        if grads.context is not None:
            grads.context[part] = (torch.mm(low_RV, weight) * factor_R1).view(-1, components, features)
        if grads.weight is not None:
            scaled_RD = (context_RD * factor_R1).to(weight.dtype)
            if dtype == weight.dtype:
                grads.weight.addmm_(low_RV.t(), scaled_RD)
            else:
                grads.weight.add_(torch.mm(low_RV.t(), scaled_RD))
        if grads.bias is not None:
            grads.bias.add_((unnormalised_RV.t() @ factor_R1).squeeze(1))

    return loss_N.masked_fill_(~counts_N, 0), grads  # whatever an ignored token holds, NaN included


def _logits(context_RD: Tensor, weight: Tensor, bias: Tensor | None, out_RV: Tensor) -> Tensor:
    if out_RV.dtype == weight.dtype:
        if bias is None:
            return torch.mm(context_RD, weight.t(), out=out_RV)
        return torch.addmm(bias, context_RD, weight.t(), out=out_RV)
    out_RV.copy_(torch.mm(context_RD, weight.t()))
    return out_RV if bias is None else out_RV.add_(bias)


def _as_input_dtypes(grads: Gradients, weight: Tensor, bias: Tensor | None) -> Gradients:
    return grads._replace(
        weight=None if grads.weight is None else grads.weight.to(weight.dtype),
        bias=None if grads.bias is None or bias is None else grads.bias.to(bias.dtype),
    )


def _refuse_second_derivative() -> None:
    # Grad mode is on in backward only under create_graph; the result would have no graph, and a penalty on the gradient
    # would vanish without a word. (once_differentiable notices only an upstream gradient that requires grad.)
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the chunked mixture loss has no second derivative (create_graph=True); use implementation='reference'"
        )


class _SummedLoss(torch.autograd.Function):
    """Sum of the losses: every token has the same upstream gradient, so forward can compute all gradients once."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        context, prior_logits, weight, bias, target, ignore_index, options = arguments
        needs = tuple(ctx.needs_input_grad[:4])
        token_weight = (target != ignore_index).to(weight.dtype) if any(needs) else None
        loss_N, grads = _walk(context, prior_logits, weight, bias, target, ignore_index, options, token_weight, needs)
        ctx.save_for_backward(*_as_input_dtypes(grads, weight, bias))
        return loss_N.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        _refuse_second_derivative()
        scaled = [None if grad is None else grad * upstream.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*scaled, None, None, None)


class _TokenLosses(torch.autograd.Function):
    """The loss of each token: upstream gradients differ by token and are known in backward only, so it recomputes."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        context, prior_logits, weight, bias, target, ignore_index, options = arguments
        ctx.save_for_backward(context, prior_logits, weight, bias, target)
        ctx.settings = (ignore_index, options)
        loss_N, _ = _walk(
            context, prior_logits, weight, bias, target, ignore_index, options, None, (False, False, False, False)
        )
        return loss_N

    @staticmethod
    def backward(ctx: Any, upstream_N: Tensor) -> Any:
        _refuse_second_derivative()
        context, prior_logits, weight, bias, target = ctx.saved_tensors
        ignore_index, options = ctx.settings
        token_weight = upstream_N * (target != ignore_index)
        needs = tuple(ctx.needs_input_grad[:4])
        _, grads = _walk(context, prior_logits, weight, bias, target, ignore_index, options, token_weight, needs)
        return (*_as_input_dtypes(grads, weight, bias), None, None, None)


def mixture_loss(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    options: LossOptions,
    summed: bool,
) -> Tensor:
    """Loss of each token (N) in nats, zero where ignored, or their sum.

    Memory beside inputs: one block of ``options.block_bytes``, O(N * K), and the gradients. The sum keeps these from
    forward to backward, which returns a scaled copy; single losses keep the inputs and walk twice.
    """
    arguments = (context, prior_logits, weight, bias, target, ignore_index, options)
    result: Tensor
    if summed and torch.is_grad_enabled():
        result = _SummedLoss.apply(*arguments)  # type: ignore[no-untyped-call]
        return result
    # Without gradients forward must not compute any: needs_input_grad does not know of no_grad.
    result = _TokenLosses.apply(*arguments)  # type: ignore[no-untyped-call]
    return result.sum() if summed else result


def mixture_log_prob(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, options: LossOptions
) -> Tensor:
    """Log-probabilities (N, V) of the mixture without (N, K, V). Not differentiable: the loss is what trains."""
    tokens, components, features = context.shape
    classes = weight.shape[0]
    dtype = _accumulation_dtype(weight.dtype)
    block = min(options.tokens_per_block(components, classes, dtype.itemsize), max(tokens, 1))
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    log_prob_NV = context.new_empty((tokens, classes), dtype=dtype)
    buffer_RV = context.new_empty((block * components, classes), dtype=dtype)
    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        logits_bKV = _logits(context_RD, weight, bias, buffer_RV[: len(context_RD)]).view(-1, components, classes)
        # log pi_k - lse_k is one number a row, so the components are joined by one logsumexp over K.
        shift_bK1 = (log_prior_NK[part] - logits_bKV.logsumexp(dim=2)).unsqueeze(2)
        log_prob_NV[part] = logits_bKV.add_(shift_bK1).logsumexp(dim=1)
    return log_prob_NV
