"""What a fused implementation computes: one walk over blocks of tokens that gives the loss and its gradients."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Gradients", "Needs", "Settings", "Walk", "round_up"]


class Needs(NamedTuple):
    """Which inputs want a gradient."""

    context: bool
    prior_logits: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """d(sum of weighted losses) for each input; None for one that was not asked for."""

    context: Tensor | None
    prior_logits: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Settings(NamedTuple):
    """``LossOptions`` with every default filled in for the inputs at hand."""

    block_bytes: int
    accumulation_dtype: torch.dtype
    min_posterior: float
    label_smoothing: float = 0.0  # of the call, not an option


class Walk(Protocol):
    def __call__(
        self,
        context: Tensor,
        prior_logits: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        token_weight: Tensor | None,
        needs: Needs,
        settings: Settings,
    ) -> tuple[Tensor, Gradients]:
        """The components' log-probabilities (N, K) and the gradients of ``sum(token_weight * loss)``.

        log_prob[n, k] = log P(target n | component k), so with ``joint = log_softmax(prior_logits) + log_prob`` a
        token's loss is ``-logsumexp(joint)`` and its posterior ``softmax(joint)``. context (N, K, D),
        prior_logits (N, K), weight (V, D), bias (V), target (N) all within 0..V-1, token_weight (N) or None where no
        gradient is asked for. The result has ``accumulation_dtype``; the gradients of weight and bias have it or their
        input's, those of context and prior_logits have their input's.
        """


def round_up(number: int, multiple: int) -> int:
    """Both walks grow sizes in memory to whole vectors."""
    return -(-number // multiple) * multiple
