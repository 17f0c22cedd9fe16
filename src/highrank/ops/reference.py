"""The definition of the mixture's loss, in log space: readable, differentiable by autograd, on any device.

It stores (N, K, V). Tests hold every other implementation against it, and tiny sizes may as well use it.
"""

import torch
from torch import Tensor

from highrank.ops.options import LossOptions

__all__ = ["mixture_log_prob", "mixture_loss"]


def mixture_log_prob(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Log-probabilities (N, V) of the mixture: logsumexp_k(log pi_k + log_softmax(z_k))."""
    logits_NKV = torch.nn.functional.linear(context, weight, bias)
    log_prior_NK = torch.log_softmax(prior_logits, dim=-1)
    return torch.logsumexp(log_prior_NK.unsqueeze(-1) + torch.log_softmax(logits_NKV, dim=-1), dim=-2)


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
    """Loss of each token (N) in nats, zero where ignored, or their sum. ``options`` has nothing to say here."""
    log_prob_NV = mixture_log_prob(context, prior_logits, weight, bias)
    reduction = "sum" if summed else "none"
    return torch.nn.functional.nll_loss(log_prob_NV, target, ignore_index=ignore_index, reduction=reduction)
