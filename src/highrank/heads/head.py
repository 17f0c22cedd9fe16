"""The interface that heads share: a head turns hidden states into contexts and prior logits; the rest follows."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from highrank.functional import (
    LossOptions,
    MixtureStatistics,
    mixture_cross_entropy,
    mixture_log_prob,
    mixture_statistics,
)

__all__ = ["Components", "Head", "check_sizes"]


class Components(NamedTuple):
    """What a mixture is made of: context (*, K, D) and prior_logits (*, K)."""

    context: Tensor
    prior_logits: Tensor


class Head(nn.Module, ABC):
    """An output layer over ``num_classes`` classes.

    weight (V, D) and bias (V) are the output embedding; ``tie(embedding.weight)`` shares the first with an input
    embedding, and ``options`` say how its loss is computed. A subclass says how hidden states become components; it
    overrides nothing else.
    """

    def __init__(
        self, num_classes: int, context_features: int, *, bias: bool = True, options: LossOptions | None = None
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, context_features=context_features)
        self.num_classes = num_classes
        self.context_features = context_features
        self.options = options
        self.weight = nn.Parameter(torch.empty(num_classes, context_features))
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None
        nn.init.uniform_(self.weight, -0.1, 0.1)

    @abstractmethod
    def components(self, hidden: Tensor) -> Components:
        """Contexts (*, K, D) and prior logits (*, K) of hidden states (*, H)."""

    def tie(self, embedding: nn.Parameter) -> None:
        """Use an input embedding (V, D) as the output embedding."""
        if embedding.shape != self.weight.shape:
            raise ValueError(f"embedding: expected shape {tuple(self.weight.shape)}, got {tuple(embedding.shape)}")
        self.weight = embedding

    def forward(self, hidden: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
        """Loss in nats of hidden (*, H) for target (*): a scalar, or (*) for ``reduction="none"``."""
        context, prior_logits = self.components(hidden)
        return mixture_cross_entropy(
            context,
            prior_logits,
            self.weight,
            target,
            bias=self.bias,
            ignore_index=ignore_index,
            reduction=reduction,
            options=self.options,
        )

    def statistics(
        self, hidden: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> MixtureStatistics:
        """The same loss, with what its pass knows of the components: see ``mixture_statistics``.

        A head with one softmax at its end, which a mixture of contexts has too, is one component.
        """
        context, prior_logits = self.components(hidden)
        return mixture_statistics(
            context,
            prior_logits,
            self.weight,
            target,
            bias=self.bias,
            ignore_index=ignore_index,
            reduction=reduction,
            options=self.options,
        )

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Normalised log-probabilities (*, V). Not differentiable."""
        with torch.no_grad():
            context, prior_logits = self.components(hidden)
        return mixture_log_prob(context, prior_logits, self.weight, bias=self.bias, options=self.options)

    def predict(self, hidden: Tensor) -> Tensor:
        """The most probable class (*) of each hidden state."""
        return self.log_prob(hidden).argmax(dim=-1)


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
