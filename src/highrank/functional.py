"""Public operations on a mixture of softmaxes: check shapes, choose an implementation, return."""

from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from highrank.ops import (
    FLOP_FORMULAS,
    LossOptions,
    Settings,
    check_options,
    choose,
    fused_log_prob,
    fused_loss,
    reference,
)
from highrank.ops.autocast import is_autocast_on, without_autocast

__all__ = [
    "FLOP_FORMULAS",
    "LossOptions",
    "MixtureStatistics",
    "mixture_cross_entropy",
    "mixture_log_prob",
    "mixture_statistics",
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class MixtureStatistics(NamedTuple):
    """What ``mixture_statistics`` returns. Only ``loss`` is differentiable; what stands for an ignored token is
    meaningless."""

    loss: Tensor  # as from mixture_cross_entropy
    prior: Tensor  # (*, K), P(component | context)
    posterior: Tensor  # (*, K), P(component | context, target)
    prior_entropy: Tensor  # (*), in nats
    posterior_entropy: Tensor  # (*), in nats
    component_log_prob: Tensor  # (*, K), log P(target | component, context), in nats


def mixture_cross_entropy(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    implementation: str = "auto",
    options: LossOptions | None = None,
) -> Tensor:
    """Cross-entropy of a mixture of K softmaxes, without storing (tokens, K, V).

    Equal to ``nll_loss(log_prob, target)`` of ``log_prob = logsumexp(log_softmax(prior_logits)[..., None] +
    log_softmax(context @ weight.T + bias), -2)``, or, with labels smoothed by s, to ``(1 - s) * nll_loss - s *
    log_prob.mean()``. With K = 1 it is the cross-entropy of a linear layer.

    Shape: context (*, K, D); prior_logits (*, K); weight (V, D); bias (V); target (*), int64. Dtypes: float32, float64,
    bfloat16 or float16, one for all inputs; autocast casts them as it does those of ``linear``.
    Returns a scalar in nats, or (*) for ``reduction="none"``. Half precision is accumulated in float32 and returned in
    that, but for ``reference``'s loss of each token. The mean is over the tokens that are not ``ignore_index``; as in
    PyTorch it is NaN if there are none. ``label_smoothing`` is as in PyTorch's ``cross_entropy``: a class of no
    probability makes it infinite.
    ``implementation`` is "auto", the fastest that can run, or one by name: "chunked" (PyTorch, any device), "triton"
    (kernels for NVIDIA GPUs) or "reference" (the formula above, which stores everything). One that cannot run raises.
    Memory beside inputs and gradients: a block of ``options.block_bytes``, copies of its contexts, and O(tokens * K);
    for a moment a second gradient of the weight, where D is no whole number of vectors.
    Where sums have a longer dtype than the inputs (half precision) also the sum of the weight's gradient in it, and for
    ``chunked`` parts of the block and of that gradient (see ``LossOptions``); for ``triton`` a copy of a weight that
    has a bias or sizes that are not round, and at the first launch of each binary twice eight rows of logits. With
    ``label_smoothing``, which ``triton`` leaves to ``chunked``, another such part, and for K > 1 three K-ths of one.
    For mean and sum the gradients are held from forward to backward, which scales them in place, or a copy if the graph
    is kept or compiled; for none, and always in float16, whose range a sum of gradients can leave before it is scaled,
    only the inputs are, and backward walks again.
    Gradients are exact for every reduction (within rounding: see ``LossOptions.min_posterior``); a second derivative
    raises, and so do forward mode and derivatives by ``torch.func`` (only ``implementation="reference"`` has them).
    Raises ValueError (for ``options`` TypeError) naming the argument, what was expected and what came. A target out of
    range is looked for on the CPU only; elsewhere its loss is NaN.
    Source: Yang et al. 2018, section 2.2 (arXiv 1711.03953).
    """
    loss, _, _ = _loss(
        context, prior_logits, weight, target, bias, ignore_index, reduction, label_smoothing, implementation, options
    )
    return loss


def mixture_statistics(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    implementation: str = "auto",
    options: LossOptions | None = None,
) -> MixtureStatistics:
    """The loss of ``mixture_cross_entropy``, to train on, with what the same pass knows of the components.

    Arguments, memory and errors as there; the statistics, of the target alone, add O(tokens * K).
    """
    loss, log_prob, prior_logits = _loss(
        context, prior_logits, weight, target, bias, ignore_index, reduction, label_smoothing, implementation, options
    )
    log_prior = torch.log_softmax(prior_logits.detach().to(log_prob.dtype), dim=-1)
    prior, posterior = log_prior.exp(), torch.softmax(log_prior + log_prob, dim=-1)
    return MixtureStatistics(
        loss=loss,
        prior=prior,
        posterior=posterior,
        prior_entropy=torch.special.entr(prior).sum(-1),
        posterior_entropy=torch.special.entr(posterior).sum(-1),
        component_log_prob=log_prob,
    )


def _loss(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    implementation: str,
    options: LossOptions | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reduced loss, log P(target | component) (*, K) without gradient, and the prior's logits as autocast has
    them."""
    context, prior_logits, weight, bias = _autocast(context, prior_logits, weight, bias)
    _check(context, prior_logits, weight, bias)
    if target.shape != context.shape[:-2]:
        raise ValueError(
            f"target: expected shape {tuple(context.shape[:-2])} for context {tuple(context.shape)}, "
            f"got {tuple(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise ValueError(f"target: expected int64, got {target.dtype}")
    if target.device != context.device:
        raise ValueError(f"target: expected {context.device} like context, got {target.device}")
    if not isinstance(ignore_index, Integral):
        raise ValueError(f"ignore_index: expected a whole number, got {ignore_index!r}")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected none, mean or sum, got {reduction!r}")
    if not isinstance(label_smoothing, Real) or not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing!r}")
    implementation = choose(implementation, context.device)
    settings = _settings(options, context, weight, float(label_smoothing))
    target_N = target.reshape(-1)

    with without_autocast(context.device.type):  # dtypes are settled: sums must not be cast down again
        arguments = (*_flat(context, prior_logits), weight, bias, target_N, int(ignore_index), settings)
        summed = reduction != "none"
        if implementation == "reference":
            loss, log_prob_NK = reference.mixture_loss(*arguments, summed)
        else:
            loss, log_prob_NK = fused_loss(*arguments, summed, implementation=implementation)
    if reduction == "mean":
        count = (target_N != ignore_index).sum()
        # NaN where nothing counts, as in PyTorch, but with gradients of zero: 0 / 0 would make them NaN.
        loss = (loss / count.clamp(min=1)).masked_fill(count == 0, torch.nan)
    elif reduction == "none":
        loss = loss.view(target.shape)
    return loss, log_prob_NK.view(prior_logits.shape), prior_logits


def mixture_log_prob(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    implementation: str = "auto",
    options: LossOptions | None = None,
) -> Tensor:
    """Log-probabilities of a mixture of K softmaxes, without storing (tokens, K, V).

    A normalised logit vector for each token: temperature, top-k and beam search work on it, and so does a loss that
    wants all classes (distillation, a penalty on the entropy). Where the target's probability is all that counts, or
    labels are smoothed, ``mixture_cross_entropy`` takes three matrix products instead of four, and no (tokens, V). Of
    one component it is three here, too.

    Shape: context (*, K, D); prior_logits (*, K); weight (V, D); bias (V). Returns (*, V), in nats, in the accumulation
    dtype: float32 for half precision.
    Memory beside the result: a block of ``options.block_bytes``, 1 + 2 / K strips, one more in half precision, and
    O(tokens * K). A strip is a part of the block in the accumulation dtype: at most a block, on a CPU at most 4 MiB, at
    least one token. Backward, which for K > 1 computes the logits again, takes the same beside the gradients, their
    sums (for a moment twice, as of the loss) and the upstream gradient (*, V).
    Gradients are exact; a second derivative raises, and so do forward mode and derivatives by ``torch.func``, but with
    ``implementation="reference"``, the definition, which stores (tokens, K, V) and sums in the inputs' dtype. The other
    names of an implementation are all one here.
    Raises ValueError (for ``options`` TypeError) naming the argument, what was expected and what came.
    """
    context, prior_logits, weight, bias = _autocast(context, prior_logits, weight, bias)
    _check(context, prior_logits, weight, bias)
    implementation = choose(implementation, context.device)
    inputs = (*_flat(context, prior_logits), weight, bias)
    settings = _settings(options, context, weight)
    with without_autocast(context.device.type):
        if implementation == "reference":
            log_prob_NV = reference.mixture_log_prob(*inputs)
        else:
            log_prob_NV = fused_log_prob(*inputs, settings)
    return log_prob_NV.view(*context.shape[:-2], weight.shape[0])


def _settings(options: LossOptions | None, context: Tensor, weight: Tensor, label_smoothing: float = 0.0) -> Settings:
    check_options(options)
    return (options or LossOptions()).settings(context, weight, label_smoothing)


def _autocast(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Under autocast the products run in its dtype, as in ``linear``; gradients come back in the inputs' own."""
    device_type = context.device.type
    if not is_autocast_on(device_type):
        return context, prior_logits, weight, bias
    dtype = torch.get_autocast_dtype(device_type)

    def cast(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 or not x.is_floating_point() else x.to(dtype)

    return cast(context), cast(prior_logits), cast(weight), None if bias is None else cast(bias)


def _flat(context: Tensor, prior_logits: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, D) and (N, K)."""
    return context.reshape(-1, *context.shape[-2:]), prior_logits.reshape(-1, prior_logits.shape[-1])


def _check(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if context.dim() < 2:
        raise ValueError(f"context: expected shape (*, components, features), got {tuple(context.shape)}")
    if prior_logits.shape != context.shape[:-1]:
        raise ValueError(
            f"prior_logits: expected shape {tuple(context.shape[:-1])} for context {tuple(context.shape)}, "
            f"got {tuple(prior_logits.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != context.shape[-1]:
        raise ValueError(
            f"weight: expected shape (classes, {context.shape[-1]}) for context {tuple(context.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if 0 in (*weight.shape, context.shape[-2]):
        raise ValueError(
            f"expected at least one class, one component and one feature, got weight {tuple(weight.shape)} "
            f"and context {tuple(context.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias: expected shape ({weight.shape[0]},) for weight {tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    if context.dtype not in DTYPES:
        raise ValueError(f"context: expected float32, float64, bfloat16 or float16, got {context.dtype}")
    others = {"prior_logits": prior_logits, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in others.items():
        if tensor.dtype != context.dtype or tensor.device != context.device:
            raise ValueError(
                f"{name}: expected {context.dtype} on {context.device} like context, "
                f"got {tensor.dtype} on {tensor.device}"
            )
