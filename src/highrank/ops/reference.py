"""The definition of the mixture's loss, in log space: readable, differentiable by autograd, on any device.

It stores (N, K, V). Tests hold every other implementation against it, and tiny sizes may as well use it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from highrank.ops.target import check_target
from highrank.ops.walk import Settings

__all__ = ["component_log_prob", "mixture_log_prob", "mixture_loss", "mixture_of"]


def mixture_log_prob(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Log-probabilities (N, V) of the mixture: logsumexp_k(log pi_k + log_softmax(z_k))."""
    return mixture_of(prior_logits, component_log_prob(context, weight, bias))


def mixture_loss(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    settings: Settings,
    summed: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of each token (N) in nats, zero where ignored, or their sum; and log P(target | component) (N, K).

    Of ``settings`` only the label smoothing counts: sums have the inputs' dtype.
    """
    if not torch.compiler.is_compiling():  # a compiler cannot look at a value either
        check_target(target, weight.shape[0], ignore_index)
    log_prob_NKV = component_log_prob(context, weight, bias)
    reduction = "sum" if summed else "none"
    log_prob_NV = mixture_of(prior_logits, log_prob_NKV)
    loss = F.nll_loss(log_prob_NV, target, ignore_index=ignore_index, reduction=reduction)
    if settings.label_smoothing:
        spread_N = log_prob_NV.mean(dim=1).neg().masked_fill(target == ignore_index, 0)
        spread = spread_N.sum() if summed else spread_N
        loss = (1 - settings.label_smoothing) * loss + settings.label_smoothing * spread
    safe_target_N11 = target.where(target != ignore_index, 0).view(-1, 1, 1)
    log_prob_NK = log_prob_NKV.detach().gather(2, safe_target_N11.expand(-1, log_prob_NKV.shape[1], 1)).squeeze(2)
    return loss, log_prob_NK


def component_log_prob(context: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """log_softmax(z_k), (N, K, V)."""
    return torch.log_softmax(F.linear(context, weight, bias), dim=-1)


def mixture_of(prior_logits: Tensor, log_prob_NKV: Tensor) -> Tensor:
    """Log-probabilities (N, V) of the mixture of components (N, K, V)."""
    return torch.logsumexp(torch.log_softmax(prior_logits, dim=-1).unsqueeze(-1) + log_prob_NKV, dim=-2)
