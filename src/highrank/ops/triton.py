"""The loss block by block on an NVIDIA GPU: the vendor's matrix products, and one kernel between them.

The mathematics is that of ``ops.chunked``. A block of logits (R rows = tokens in block * K) is written by one product;
the kernel turns it in place into softmax - onehot(target), and gives each row's log-probability of its target; two more
products turn that into gradients. The factor of each row, posterior * token weight, is known only when the K rows of a
token are done, and is left to the small side of these products.

Why not all in kernels: the products are most of the time, and recomputing the logits instead of storing a block of them
would add a fourth. Why logits in the inputs' dtype: for each of them in bfloat16, the products move 2 (write) + 2 + 2
(read) bytes of device memory and the kernel 2 (read) + 2 (write). On an H100 (3.35 TB/s; about 700 TFLOP/s in practice)
Penn Treebank's 126 million logits at D = 280 are 0.30 ms of arithmetic and 0.23 ms of traffic for the bare products,
and 0.15 ms of traffic for the kernel: 1.5 times the bare products, if those overlap. In float32 it would be 4 + 2 + 2
bytes for the products and 4 + 2, or 4 + 4 + 2 where the second pass misses the cache, for the kernel: 2.0 to 2.5 times
the bare products, for digits that the naive computation in the same dtype does not have either. Exponentials, sums and
log-probabilities are in the accumulation dtype.

Sizes need not be round; they are made so inside. D grows to E, a multiple of 16 bytes, and V to U, a multiple of 16: a
product with other strides leaves the tensor cores' fast path, and the kernel could not read whole vectors. Where there
is a bias or anything to grow, the weight is copied once a call, and a feature that is always 1 carries the bias: the
first product adds it, the last one sums its gradient, and classes that are not there have a bias of -inf. No addition
is atomic: two runs give the same bits.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from highrank.ops.walk import Gradients, Needs, Settings, round_up

__all__ = ["KernelError", "cannot_run", "walk"]

INSTALLED = find_spec("triton") is not None  # a compiler that traces ``cannot_run`` could not ask
INTERPRET_WHEN = ("1", "true", "yes", "on", "y")  # as triton reads TRITON_INTERPRET


class KernelError(RuntimeError):
    """The first launch of a binary failed, or gave wrong numbers, or the kernels could not be loaded."""


def cannot_run(device: torch.device) -> str | None:
    """Why the kernels cannot run there, in a few words; None if they can."""
    if not INSTALLED:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in INTERPRET_WHEN
    if device.type == "cpu":
        return None if interpreted else "a CPU has Triton's interpreter only (TRITON_INTERPRET=1)"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"needs an NVIDIA GPU, not {device}"
    if interpreted:
        return "TRITON_INTERPRET is set: there is no interpreting on a GPU"
    found = torch.cuda.get_device_properties(device)  # which torch.compile takes for a constant
    capability = (found.major, found.minor)
    return None if capability >= (8, 0) else f"needs a GPU of capability 8.0 or more, {device} has {capability}"


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
    try:
        from highrank.ops.triton_kernels import target_log_prob  # triton is optional, and slow to import
    except Exception as error:  # an installation that is broken, or of a release that is too different
        raise KernelError(f"{type(error).__name__}: {error}") from error

    tokens, components, features = context.shape
    classes, dtype = weight.shape[0], settings.accumulation_dtype
    weight_UE = _grown(weight, bias)
    columns, width = weight_UE.shape
    token_bytes = components * max(columns, width) * weight.itemsize  # the products have rows of E numbers
    block = min(max(1, settings.block_bytes // token_bytes), max(tokens, 1))
    logits_RU = weight.new_empty((block * components, columns))  # R = rows = tokens in block * K
    # Ones beyond D: the first carries the bias, the others meet zeros.
    grown_RE = None if width == features else weight.new_ones((block * components, width))

    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=1)
    log_prob_NK = torch.empty_like(log_prior_NK)
    grad_context = context.new_empty(context.shape) if needs.context else None
    # Of d weight_UE the columns that are asked for (C). A single block's product is rounded once, whatever its dtype.
    first = 0 if needs.weight else features
    sum_dtype = weight.dtype if block >= tokens else dtype
    allocate = weight.new_empty if tokens else weight.new_zeros
    grad_UC = allocate((columns, width - first), dtype=sum_dtype) if needs.weight or needs.bias else None
    gradient = token_weight is not None and (grad_context is not None or grad_UC is not None)

    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RE = context[part].reshape(-1, features)
        if grown_RE is not None:
            grown_RE[: len(context_RE), :features] = context_RE
            context_RE = grown_RE[: len(context_RE)]
        block_RU = torch.mm(context_RE, weight_UE.t(), out=logits_RU[: len(context_RE)])
        log_prob_bK = log_prob_NK[part]  # b = tokens in block
        log_prob_bK.view(-1).copy_(target_log_prob(block_RU, target[part], dtype, gradient))
        if token_weight is None or not gradient:
            continue

        # The block is now softmax(logits) - onehot(target).
        posterior_bK = torch.softmax(log_prior_NK[part] + log_prob_bK, dim=1)
        row_weight_R1 = posterior_bK.mul_(token_weight[part].unsqueeze(1)).view(-1, 1)
        if grad_context is not None:
            product_RD = torch.mm(block_RU, weight_UE)[:, :features]
            torch.mul(product_RD, row_weight_R1, out=grad_context[part].view(-1, features))
            del product_RD
        if grad_UC is not None:
            weighted_RE = torch.mul(context_RE, row_weight_R1, out=torch.empty_like(context_RE))
            _add_product(grad_UC, block_RU.t(), weighted_RE[:, first:], beta=min(start, 1))
            del weighted_RE  # or it would live beside the next block's

    grad_prior = grad_weight = grad_bias = None
    if needs.prior_logits and token_weight is not None:
        posterior_NK = torch.softmax(log_prior_NK + log_prob_NK, dim=1)
        grad_prior = torch.softmax(prior_logits.to(dtype), dim=1).sub_(posterior_NK)
        grad_prior = grad_prior.mul_(token_weight.unsqueeze(1)).to(prior_logits.dtype)
    if needs.weight and grad_UC is not None:
        grad_weight = grad_UC[:classes, :features]  # made compact when the block is gone
    if needs.bias and grad_UC is not None:
        grad_bias = grad_UC[:classes, features - first].to(weight.dtype, copy=True)  # no view beside that of the weight
    return log_prob_NK, Gradients(grad_context, grad_prior, grad_weight, grad_bias)


def _grown(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight (V, D) grown to (U, E): zeros, but for column D, which is the bias, and from row V on -inf."""
    classes, features = weight.shape
    columns = round_up(classes, 16)
    with_bias = bias is not None or columns > classes
    width = round_up(features + with_bias, 16 // weight.itemsize)
    if (columns, width) == (classes, features):
        return weight
    weight_UE = weight.new_zeros((columns, width))
    weight_UE[:classes, :features] = weight
    if bias is not None:
        weight_UE[:classes, features] = bias
    if columns > classes:
        weight_UE[classes:, features] = -torch.inf
    return weight_UE


def _add_product(total: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """total = beta * total + a @ b, summed in total's dtype. With a beta of 0, total may hold anything."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=beta)
    elif total.is_cuda and total.dtype == torch.float32:
        torch.addmm(total, a, b, total.dtype, beta=beta, out=total)
    else:  # no such product there: rounded to a's dtype before it is summed
        product = torch.mm(a, b)
        if beta:
            total.add_(product)
        else:
            total.copy_(product)
