"""The definition of the mixture's loss, in log space: readable, differentiable by autograd, on any device.

It stores (N, K, V). Tests hold every other implementation against it, and tiny sizes may as well use it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from highrank.ops.target import sort_targets
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

    The sum over tokens has ``settings.accumulation_dtype``, which what thousands of them add up to is in the range of;
    all else has the inputs' dtype, to which the sum's upstream gradient is rounded too.
    """
    target_N, counts_N, wrong_N = sort_targets(target, weight.shape[0], ignore_index)
    log_prob_NKV = component_log_prob(context, weight, bias)
    log_prob_NV = mixture_of(prior_logits, log_prob_NKV)
    loss_N = -log_prob_NV.gather(1, target_N.unsqueeze(1)).squeeze(1)
    if settings.label_smoothing:
        loss_N = (1 - settings.label_smoothing) * loss_N - settings.label_smoothing * log_prob_NV.mean(dim=1)
    nan_if_wrong_N = torch.ones_like(loss_N).masked_fill(wrong_N, torch.nan)  # a factor: of the gradients too
    loss_N = (loss_N * nan_if_wrong_N).masked_fill(~counts_N, 0)
    log_prob_NK = log_prob_NKV.detach().gather(2, target_N.view(-1, 1, 1).expand(-1, log_prob_NKV.shape[1], 1))
    return loss_N.sum(dtype=settings.accumulation_dtype) if summed else loss_N, log_prob_NK.squeeze(2)


def component_log_prob(context: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """log_softmax(z_k), (N, K, V)."""
    return torch.log_softmax(F.linear(context, weight, bias), dim=-1)


def mixture_of(prior_logits: Tensor, log_prob_NKV: Tensor) -> Tensor:
    """Log-probabilities (N, V) of the mixture of components (N, K, V)."""
    return torch.logsumexp(torch.log_softmax(prior_logits, dim=-1).unsqueeze(-1) + log_prob_NKV, dim=-2)
