"""The definition of the mixture's loss, in log space: readable, differentiable by autograd, on any device.

It stores (N, K, V). Tests hold every other implementation against it, and tiny sizes may as well use it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from highrank.ops.target import check_target
from highrank.ops.walk import Settings

__all__ = ["mixture_log_prob", "mixture_loss"]


def mixture_log_prob(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Log-probabilities (N, V) of the mixture: logsumexp_k(log pi_k + log_softmax(z_k))."""
    return torch.logsumexp(_joint(context, prior_logits, weight, bias), dim=-2)


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
    """The loss of each token (N) in nats, zero where ignored, or their sum; and the joint log-probabilities (N, K).

    ``settings`` has nothing to say here: sums have the inputs' dtype.
    """
    if not torch.compiler.is_compiling():  # a compiler cannot look at a value either
        check_target(target, weight.shape[0], ignore_index)
    joint_NKV = _joint(context, prior_logits, weight, bias)
    log_prob_NV = torch.logsumexp(joint_NKV, dim=-2)
    reduction = "sum" if summed else "none"
    loss = F.nll_loss(log_prob_NV, target, ignore_index=ignore_index, reduction=reduction)
    safe_target_N11 = target.where(target != ignore_index, 0).view(-1, 1, 1)
    joint_NK = joint_NKV.detach().gather(2, safe_target_N11.expand(-1, joint_NKV.shape[1], 1)).squeeze(2)
    return loss, joint_NK


def _joint(context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """log pi_k + log_softmax(z_k), (N, K, V)."""
    logits_NKV = F.linear(context, weight, bias)
    return torch.log_softmax(prior_logits, dim=-1).unsqueeze(-1) + torch.log_softmax(logits_NKV, dim=-1)
