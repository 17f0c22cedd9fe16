"""The loss of a handful of tokens, the gradient of the weight left as the two factors that it is the product of.

From R = N * K rows it is a sum of R outer products. For a few tokens the factors are far smaller than the weight, and
whoever moves the weight can multiply them piece by piece in the processor's cache: the gradient itself need never
travel to memory and back.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from highrank.ops.chunked import softmax_rows, subtract_targets
from highrank.ops.walk import Settings

__all__ = ["FactoredLoss", "factored_loss"]


class FactoredLoss(NamedTuple):
    """The mean loss in nats, and what its gradients are made of.

    That of the weight is ``rows.T @ inputs``, that of the contexts ``scale * (rows @ weight)``. A row is a component of
    a token.
    """

    loss: Tensor
    rows: Tensor  # (N * K, V)
    inputs: Tensor  # (N * K, D)
    scale: Tensor  # (N * K, 1)
    bias: Tensor | None  # (V), its gradient
    prior_logits: Tensor  # (N, K), their gradient


@torch.no_grad()
def factored_loss(
    context: Tensor, prior_logits: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, settings: Settings
) -> FactoredLoss:
    """``mixture_cross_entropy`` of few tokens. The probabilities (N * K, V) are stored, whatever ``block_bytes``.

    Shape: context (N, K, D); prior_logits (N, K); weight (V, D); bias (V); target (N), each within 0..V-1.
    """
    tokens, components, features = context.shape
    dtype = settings.accumulation_dtype
    context_RD = context.reshape(-1, features)
    target_R1 = target.repeat_interleave(components).unsqueeze(1)
    prob_RV, log_prob_R = softmax_rows(context_RD, weight, bias, target_R1, dtype)
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    joint_NK = log_prior_NK + log_prob_R.view(-1, components)
    posterior_NK = torch.softmax(joint_NK, dim=1)
    subtract_targets(prob_RV, target_R1)
    scale_R1 = (posterior_NK / tokens).view(-1, 1)
    low_RV = prob_RV.to(weight.dtype)
    return FactoredLoss(
        -torch.logsumexp(joint_NK, dim=1).mean(),
        low_RV,
        (context_RD * scale_R1).to(weight.dtype),
        scale_R1.to(weight.dtype),
        None if bias is None else torch.mv(prob_RV.t(), scale_R1.squeeze(1)).to(bias.dtype),
        (log_prior_NK.exp() - posterior_NK).div_(tokens).to(prior_logits.dtype),
    )
