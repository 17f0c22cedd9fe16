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
from collections.abc import Iterator

import torch
from torch import Tensor

from highrank.ops.walk import Gradients, Needs, Settings, round_up

__all__ = [
    "add_kept_products",
    "add_products",
    "block_buffer",
    "logits_of",
    "new_gradients",
    "softmax_rows",
    "strip_buffer",
    "strip_like",
    "strip_rows",
    "strips",
    "subtract_targets",
    "walk",
]

# Rows that begin on a vector's boundary: a ragged V or D costs a matrix product on a CPU much of its speed, by the
# strides alone. At WikiText-2's (V = 33,278, D = 300) the bare products on plain tensors take longer than the whole
# loss does (docs/loss.md).
ROW_BYTES = 32

# Moving the rows that are kept has to cost less than is saved by leaving out the others: 4 D operations for each of
# their numbers. So many operations a core of 150 GFLOP/s does while it moves one number at 10 GB/s.
OPERATIONS_A_MOVE = 120

# In half precision the rows that are kept come in so many different numbers a full block: for every shape of a product
# oneDNN writes a program, at some MiB each, and keeps a thousand of them.
KEPT_NUMBERS = 16

# What is moved in one call at least.
SMALL_BYTES = 2**16

# On a CPU, logits in half precision become probabilities a strip at a time, in the accumulation dtype and in the last
# cache: only the short numbers travel to memory and back.
STRIP_BYTES = 4 * 2**20


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
    buffer_RU = block_buffer(context, weight, settings)
    strip_SU = strip_buffer(buffer_RU, components, settings)
    block = len(buffer_RU) // components
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    log_prob_NK = torch.empty_like(log_prior_NK)
    grads = new_gradients(context, weight, needs, dtype)
    if needs.prior_logits:
        grads = grads._replace(prior_logits=torch.softmax(prior_logits.to(dtype), dim=-1))
    differentiated = token_weight is not None and (needs.context or needs.weight or needs.bias)

    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        target_R1 = target[part].repeat_interleave(components).unsqueeze(1)
        log_prob_bK = log_prob_NK[part]  # b = tokens in block
        block_RU = logits_of(context_RD, weight, bias, buffer_RU[: len(context_RD)])
        for rows, wide_RU in strips(block_RU, strip_SU, write=differentiated):
            log_prob_bK.view(-1)[rows] = _softmax_in_place(wide_RU, context_RD[rows], weight, bias, target_R1[rows])
            if differentiated:
                # The gradient of the logits is row_weight * (prob - onehot(target)). row_weight is left to the small
                # side of each product, which saves a pass over the block.
                subtract_targets(wide_RU, target_R1[rows])
        if token_weight is None:
            continue

        posterior_bK = torch.softmax(log_prior_NK[part] + log_prob_bK, dim=1)
        token_weight_b1 = token_weight[part].unsqueeze(1).to(dtype)
        if grads.prior_logits is not None:
            grads.prior_logits[part].sub_(posterior_bK).mul_(token_weight_b1)
        if differentiated:
            weights = posterior_bK, token_weight_b1, settings.min_posterior
            add_kept_products(block_RU, len(buffer_RU), part, *weights, context_RD, weight, grads, strip_SU)

    if grads.prior_logits is not None:
        grads = grads._replace(prior_logits=grads.prior_logits.to(prior_logits.dtype))
    return log_prob_NK, grads


def new_gradients(context: Tensor, weight: Tensor, needs: Needs, dtype: torch.dtype) -> Gradients:
    """Room for those of context, weight and bias; the last two, in ``dtype``, are zero."""
    features = weight.shape[1]
    return Gradients(
        context.new_empty(context.shape) if needs.context else None,
        None,
        weight.new_zeros((len(weight), _whole_vectors(features, dtype)), dtype=dtype)[:, :features]
        if needs.weight
        else None,
        weight.new_zeros(len(weight), dtype=dtype) if needs.bias else None,
    )


def _whole_vectors(columns: int, dtype: torch.dtype) -> int:
    """How long a row of so many numbers is made."""
    return round_up(columns, ROW_BYTES // dtype.itemsize)


def _logits_buffer(rows: int, weight: Tensor) -> Tensor:
    """Room for rows of logits (R, U): U = V made round."""
    return weight.new_empty((rows, _whole_vectors(len(weight), weight.dtype)))


def block_buffer(context: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Room for a block of logits: R = rows = tokens in block * K."""
    tokens, components, features = context.shape
    widest = max(_whole_vectors(len(weight), weight.dtype), features)  # the products have rows of D numbers
    block = max(1, settings.block_bytes // (components * widest * weight.itemsize))
    return _logits_buffer(min(block, max(tokens, 1)) * components, weight)


def strip_buffer(buffer_RU: Tensor, components: int, settings: Settings) -> Tensor | None:
    """Room for some tokens of a block in the accumulation dtype; None where the block has it."""
    return None if buffer_RU.dtype == settings.accumulation_dtype else strip_like(buffer_RU, components, settings)


def strip_like(buffer_RU: Tensor, components: int, settings: Settings) -> Tensor:
    """Such room, whatever dtype the block has."""
    shape = strip_rows(buffer_RU, components, settings), buffer_RU.shape[1]
    return buffer_RU.new_empty(shape, dtype=settings.accumulation_dtype)


def strip_rows(buffer_RU: Tensor, components: int, settings: Settings) -> int:
    rows, columns = buffer_RU.shape
    room = min(STRIP_BYTES, settings.block_bytes) if buffer_RU.device.type == "cpu" else settings.block_bytes
    return min(rows, components * max(1, room // (components * columns * settings.accumulation_dtype.itemsize)))


def strips(
    block_RU: Tensor, strip_SU: Tensor | None, *, read: bool = True, write: bool, most: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """A block in the dtype of the strip, some rows at a time: which they are, and themselves, to be changed in place;
    with ``write`` the block has the changes after. Without ``read`` they may hold anything. Without a strip it is the
    block itself, ``most`` rows at once."""
    if strip_SU is None:
        step = most or max(1, len(block_RU))
        for first in range(0, len(block_RU), step):
            yield slice(first, min(first + step, len(block_RU))), block_RU[first : first + step]
        return
    for first in range(0, len(block_RU), len(strip_SU)):
        rows = slice(first, min(first + len(strip_SU), len(block_RU)))
        wide_SU = strip_SU[: rows.stop - first, : block_RU.shape[1]]
        if read:
            wide_SU.copy_(block_RU[rows])
        yield rows, wide_SU
        if write:
            block_RU[rows] = wide_SU


def softmax_rows(
    context_RD: Tensor, weight: Tensor, bias: Tensor | None, target_R1: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The probabilities (R, V) of all classes, and the log-probability (R) of each row's target, in ``dtype``."""
    logits_RU = logits_of(context_RD, weight, bias, _logits_buffer(len(context_RD), weight)).to(dtype)
    log_prob_R = _softmax_in_place(logits_RU, context_RD, weight, bias, target_R1)
    return logits_RU[:, : len(weight)], log_prob_R


def subtract_targets(prob_RV: Tensor, target_R1: Tensor) -> None:
    """prob - onehot(target), in place: one entry a row, so no atomic additions, whose order would change bits."""
    prob_RV.scatter_(1, target_R1, prob_RV.gather(1, target_R1) - 1)


def logits_of(context_RD: Tensor, weight: Tensor, bias: Tensor | None, out_RU: Tensor) -> Tensor:
    """``out_RU`` filled: -inf where there is no class."""
    out_RV = out_RU[:, : len(weight)]
    out_RU[:, len(weight) :] = -torch.inf
    if bias is None:
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
        max_R = (context_RD[lost_R].to(prob_RU.dtype) * weight[best_R].to(prob_RU.dtype)).sum(1)
        if bias is not None:
            max_R += bias[best_R]
        max_R = max_R.to(weight.dtype).to(prob_RU.dtype)  # rounded as the matrix product was
        log_prob_R[lost_R] = target_logit_R[lost_R] - max_R + max_prob_R[lost_R].log()
    return log_prob_R


def add_kept_products(
    block_RU: Tensor,
    most_rows: int,
    part: slice,
    posterior_bK: Tensor,
    token_weight_b1: Tensor,
    min_posterior: float,
    context_RD: Tensor,
    weight: Tensor,
    grads: Gradients,
    strip_SU: Tensor | None,
) -> None:
    """``add_products`` of a block (``part`` of the tokens; ``most_rows`` in a full one), whose rows have the weight
    posterior * token weight: of those that count."""
    grad_RV, row_weight_R1 = block_RU[:, : len(weight)], (posterior_bK * token_weight_b1).view(-1, 1)
    grad_context_RD = None if grads.context is None else grads.context[part].view(-1, weight.shape[1])
    step = 1 if strip_SU is None else max(1, most_rows // KEPT_NUMBERS)
    kept_R = _kept_rows(posterior_bK, token_weight_b1, min_posterior, weight.shape[1], step)
    if kept_R is None:
        add_products(grad_RV, row_weight_R1, context_RD, weight, grad_context_RD, grads, strip_SU)
        return
    kept_grad_RD = None if grad_context_RD is None else context_RD.new_empty((len(kept_R), weight.shape[1]))
    grad_RV, row_weight_R1 = _compact(grad_RV, kept_R), row_weight_R1[kept_R]
    add_products(grad_RV, row_weight_R1, context_RD[kept_R], weight, kept_grad_RD, grads, strip_SU)
    if grad_context_RD is not None and kept_grad_RD is not None:
        grad_context_RD.zero_().index_copy_(0, kept_R, kept_grad_RD)


def _kept_rows(
    posterior_bK: Tensor, token_weight_b1: Tensor, min_posterior: float, features: int, step: int
) -> Tensor | None:
    """The rows whose gradient counts, and more of tokens that count up to a multiple of ``step``, if there are so many;
    None where leaving out would not pay."""
    if posterior_bK.device.type != "cpu":  # their number would make the host wait
        return None
    # Written so that NaN is kept.
    small_bK, counts_b1 = posterior_bK < min_posterior, token_weight_b1 != 0
    kept_R = (~small_bK & counts_b1).view(-1).nonzero().squeeze(1)
    if missing := -len(kept_R) % step:
        spare_R = (small_bK & counts_b1).view(-1).nonzero().squeeze(1)[:missing]
        if len(spare_R) == missing:
            kept_R = torch.cat([kept_R, spare_R]).sort().values
    left_out = posterior_bK.numel() - len(kept_R)
    return kept_R if 4 * features * left_out > OPERATIONS_A_MOVE * len(kept_R) else None


def _compact(rows_RV: Tensor, kept_R: Tensor) -> Tensor:
    """The kept rows moved to the front, in place: a row only ever moves up, and the copies go from first to last."""
    # What one copy holds a second time: a sixteenth, or so little that the calls would cost more than what they copy.
    step = max(1, len(rows_RV) // 16, SMALL_BYTES // (rows_RV.shape[1] * rows_RV.itemsize))
    for start in range(0, len(kept_R), step):
        moved_R = kept_R[start : start + step]
        rows_RV[start : start + len(moved_R)] = rows_RV[moved_R]
    return rows_RV[: len(kept_R)]


def add_products(
    grad_RV: Tensor,
    row_weight_R1: Tensor | None,
    context_RD: Tensor,
    weight: Tensor,
    grad_context_RD: Tensor | None,
    grads: Gradients,
    strip_SU: Tensor | None,
) -> None:
    """Write the gradient of the contexts, and add to those of weight and bias, from rows of the logits' and the weight
    of each; None where they have it already."""
    features = weight.shape[1]
    if grad_context_RD is not None:
        torch.mm(grad_RV, weight, out=grad_context_RD)
        if row_weight_R1 is not None:
            grad_context_RD.mul_(row_weight_R1)
    if grads.weight is not None:
        scaled_RD = context_RD if row_weight_R1 is None else (context_RD * row_weight_R1).to(weight.dtype)
        if strip_SU is None:
            grads.weight.addmm_(grad_RV.t(), scaled_RD)
        else:
            product_VD = torch.mm(grad_RV.t(), scaled_RD)
            step = max(1, strip_SU.numel() // features)  # to add it, PyTorch copies it into the dtype of the sum
            for first in range(0, len(product_VD), step):
                grads.weight[first : first + step].add_(product_VD[first : first + step])
    if grads.bias is not None:
        for rows, wide_SV in strips(grad_RV, strip_SU, write=False):
            if row_weight_R1 is None:
                grads.bias.add_(wide_SV.sum(0))
            else:
                grads.bias.addmv_(wide_SV.t(), row_weight_R1[rows].squeeze(1))
