"""The loss block by block in pure PyTorch: bounded memory, at the speed of the matrix products, on any device.

For one token with target y and z_k = context_k @ weight.T + bias,

    log p(y) = logsumexp_k( log pi_k + z_k[y] - lse_k ),   lse_k = logsumexp_v z_k[v]
    r_k      = exp( log pi_k + z_k[y] - lse_k - log p(y) )                        (posterior of component k)
    d(-log p)/d z_k[v]         = r_k * ( softmax(z_k)[v] - 1{v = y} )
    d(-log p)/d prior_logits_k = pi_k - r_k

so the gradient of a block is known as soon as its forward is, from the same logits: three matrix products a block and
nothing of size (N, K, V). See docs/mathematics.md for the derivation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from highrank.ops.walk import Gradients, Needs, Settings, round_up

__all__ = ["logits_buffer", "mixture_log_prob", "softmax_rows", "subtract_targets", "walk"]

# Rows that begin on a vector's boundary: a ragged V or D costs a matrix product on a CPU much of its speed, by the
# strides alone. At WikiText-2's (V = 33,278, D = 300) the bare products on plain tensors take longer than the whole
# loss does (docs/loss.md).
ROW_BYTES = 32

# Copying the rows that are kept has to cost less than the two products that it makes smaller save.
COMPACT_BELOW = 0.9


def walk(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    token_weight: Tensor | None,
    needs: Needs,
    settings: Settings,
) -> tuple[Tensor, Gradients]:
    """See ``ops.walk.Walk``."""
    tokens, components, features = context.shape
    dtype = settings.accumulation_dtype
    buffer_RU = _buffer(context, weight, settings)
    block = len(buffer_RU) // components
    joint_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    grads = Gradients(
        context.new_empty(context.shape) if needs.context else None,
        torch.softmax(prior_logits.to(dtype), dim=-1) if needs.prior_logits else None,
        _rows(weight.new_zeros, len(weight), features, dtype) if needs.weight else None,
        weight.new_zeros(len(weight), dtype=dtype) if needs.bias else None,
    )

    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        target_R1 = target[part].repeat_interleave(components).unsqueeze(1)
        prob_RV, log_prob_R = softmax_rows(context_RD, weight, bias, target_R1, buffer_RU[: len(context_RD)])

        joint_bK = joint_NK[part].add_(log_prob_R.view(-1, components))  # b = tokens in block
        if token_weight is None:
            continue
        posterior_bK = torch.softmax(joint_bK, dim=1)
        token_weight_b1 = token_weight[part].unsqueeze(1).to(dtype)
        if grads.prior_logits is not None:
            grads.prior_logits[part].sub_(posterior_bK).mul_(token_weight_b1)
        if grads.context is None and grads.weight is None and grads.bias is None:
            continue

        # The gradient of the logits is row_weight * (prob - onehot(target)). row_weight is left to the small side of
        # each product, which saves a pass over the block.
        subtract_targets(prob_RV, target_R1)
        row_weight_R1 = (posterior_bK * token_weight_b1).view(-1, 1)
        grad_context_RD = None if grads.context is None else grads.context[part].view(-1, features)
        kept_R = _kept_rows(posterior_bK, token_weight_b1, settings.min_posterior)
        if kept_R is None:
            _add_products(prob_RV, row_weight_R1, context_RD, weight, grad_context_RD, grads)
        else:
            kept_grad_RD = None if grad_context_RD is None else context.new_empty((len(kept_R), features))
            prob_RV, row_weight_R1 = _compact(prob_RV, kept_R), row_weight_R1[kept_R]
            _add_products(prob_RV, row_weight_R1, context_RD[kept_R], weight, kept_grad_RD, grads)
            if grad_context_RD is not None and kept_grad_RD is not None:
                grad_context_RD.zero_().index_copy_(0, kept_R, kept_grad_RD)

    if grads.prior_logits is not None:
        grads = grads._replace(prior_logits=grads.prior_logits.to(prior_logits.dtype))
    return joint_NK, grads


def _rows(new: Callable[..., Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns), a view of a tensor whose rows are a whole number of vectors long."""
    return new((rows, round_up(columns, ROW_BYTES // dtype.itemsize)), dtype=dtype)[:, :columns]


def logits_buffer(rows: int, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for rows of logits (R, U): U = V made round."""
    columns = _rows(weight.new_empty, 0, len(weight), dtype).stride(0)
    return weight.new_empty((rows, columns), dtype=dtype)


def _buffer(context: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Room for a block of logits: R = rows = tokens in block * K."""
    tokens, components, _ = context.shape
    dtype = settings.accumulation_dtype
    row_bytes = logits_buffer(0, weight, dtype).stride(0) * dtype.itemsize
    block = max(1, settings.block_bytes // (components * row_bytes))
    return logits_buffer(min(block, max(tokens, 1)) * components, weight, dtype)


def softmax_rows(
    context_RD: Tensor, weight: Tensor, bias: Tensor | None, target_R1: Tensor, out_RU: Tensor
) -> tuple[Tensor, Tensor]:
    """The probabilities (R, V) of all classes, in ``out_RU``, and the log-probability (R) of each row's target."""
    logits_RU = _logits(context_RD, weight, bias, out_RU)
    log_prob_R = _softmax_in_place(logits_RU, context_RD, weight, bias, target_R1)
    return logits_RU[:, : len(weight)], log_prob_R


def subtract_targets(prob_RV: Tensor, target_R1: Tensor) -> None:
    """prob - onehot(target), in place: one entry a row, so no atomic additions, whose order would change bits."""
    prob_RV.scatter_(1, target_R1, prob_RV.gather(1, target_R1) - 1)


def _logits(context_RD: Tensor, weight: Tensor, bias: Tensor | None, out_RU: Tensor) -> Tensor:
    """``out_RU`` filled: -inf where there is no class."""
    out_RV = out_RU[:, : len(weight)]
    out_RU[:, len(weight) :] = -torch.inf
    if out_RU.dtype != weight.dtype:
        out_RV.copy_(torch.mm(context_RD, weight.t()))
        if bias is not None:
            out_RV.add_(bias)
    elif bias is None:
        torch.mm(context_RD, weight.t(), out=out_RV)
    else:
        torch.addmm(bias, context_RD, weight.t(), out=out_RV)
    return out_RU


def _softmax_in_place(
    logits_RU: Tensor, context_RD: Tensor, weight: Tensor, bias: Tensor | None, target_R1: Tensor
) -> Tensor:
    """The log-probability of each row's target; the logits become probabilities."""
    target_logit_R = logits_RU.gather(1, target_R1).squeeze(1)
    if logits_RU.device.type != "cpu":  # where looking at a value would make the host wait: two more passes, always
        max_R = logits_RU.amax(dim=1)
        prob_RU = torch.softmax(logits_RU, dim=1, out=logits_RU)
        return target_logit_R - max_R + prob_RU.amax(dim=1).log()
    prob_RU = torch.softmax(logits_RU, dim=1, out=logits_RU)
    log_prob_R = prob_RU.gather(1, target_R1).squeeze(1).log()
    # A probability that has left the range of normal numbers has lost its digits. The logits are gone, but those of the
    # likeliest class can be had again for one dot product a row: lse = logit - log(prob).
    limits = torch.finfo(prob_RU.dtype)
    lost_R = (log_prob_R < math.log(limits.tiny / limits.eps)).nonzero().squeeze(1)
    if len(lost_R):
        max_prob_R, best_R = prob_RU.max(dim=1)
        best_R = best_R[lost_R]
        products_RD = context_RD[lost_R].to(prob_RU.dtype) * weight[best_R].to(prob_RU.dtype)
        max_R = products_RD.sum(1).to(weight.dtype).to(prob_RU.dtype)  # rounded as the matrix product was
        if bias is not None:
            max_R += bias[best_R]
        log_prob_R[lost_R] = target_logit_R[lost_R] - max_R + max_prob_R[lost_R].log()
    return log_prob_R


def _kept_rows(posterior_bK: Tensor, token_weight_b1: Tensor, min_posterior: float) -> Tensor | None:
    """The rows whose gradient counts; None where leaving the others out would not pay."""
    if posterior_bK.device.type != "cpu":  # their number would make the host wait
        return None
    # Written so that NaN is kept.
    left_out_bK = (posterior_bK < min_posterior) | (token_weight_b1 == 0)
    kept_R = left_out_bK.logical_not_().view(-1).nonzero().squeeze(1)
    return kept_R if len(kept_R) < COMPACT_BELOW * posterior_bK.numel() else None


def _compact(rows_RV: Tensor, kept_R: Tensor) -> Tensor:
    """The kept rows moved to the front, in place: a row only ever moves up, and the copies go from first to last."""
    step = max(1, len(rows_RV) // 16)  # what one copy holds a second time
    for start in range(0, len(kept_R), step):
        moved_R = kept_R[start : start + step]
        rows_RV[start : start + len(moved_R)] = rows_RV[moved_R]
    return rows_RV[: len(kept_R)]


def _add_products(
    grad_RV: Tensor,
    row_weight_R1: Tensor,
    context_RD: Tensor,
    weight: Tensor,
    grad_context_RD: Tensor | None,
    grads: Gradients,
) -> None:
    """Write the gradient of the contexts, and add to those of weight and bias, from unweighted rows of the logits'."""
    low_RV = grad_RV.to(weight.dtype)
    if grad_context_RD is not None:
        torch.mul(torch.mm(low_RV, weight), row_weight_R1.to(weight.dtype), out=grad_context_RD)
    if grads.weight is not None:
        scaled_RD = (context_RD * row_weight_R1).to(weight.dtype)
        if grads.weight.dtype == weight.dtype:
            grads.weight.addmm_(low_RV.t(), scaled_RD)
        else:
            grads.weight.add_(torch.mm(low_RV.t(), scaled_RD))
    if grads.bias is not None:
        grads.bias.add_(torch.mv(grad_RV.t(), row_weight_R1.squeeze(1)))


def mixture_log_prob(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings
) -> Tensor:
    """Log-probabilities (N, V) of the mixture without (N, K, V). Not differentiable: the loss is what trains."""
    tokens, components, features = context.shape
    classes, dtype = weight.shape[0], settings.accumulation_dtype
    buffer_RU = _buffer(context, weight, settings)
    block = len(buffer_RU) // components
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    log_prob_NV = context.new_empty((tokens, classes), dtype=dtype)
    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        logits_RU = _logits(context_RD, weight, bias, buffer_RU[: len(context_RD)])
        logits_bKV = logits_RU.view(-1, components, logits_RU.shape[1])[..., :classes]
        # log pi_k - lse_k is one number a row, so the components are joined by one logsumexp over K.
        shift_bK1 = (log_prior_NK[part] - logits_bKV.logsumexp(dim=2)).unsqueeze(2)
        log_prob_NV[part] = logits_bKV.add_(shift_bK1).logsumexp(dim=1)
    return log_prob_NV
