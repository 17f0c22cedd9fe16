"""The interface that heads share: a head turns hidden states into contexts and prior logits; the rest follows."""

from abc import ABC, abstractmethod
from numbers import Integral
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
from highrank.ops import check_options

__all__ = ["Components", "Head", "check_sizes", "dropout_of"]


class Components(NamedTuple):
    """What a mixture is made of: context (*, K, D) and prior_logits (*, K)."""

    context: Tensor
    prior_logits: Tensor


class Head(nn.Module, ABC):
    """An output layer over ``num_classes`` classes.

    weight (V, D) and bias (V) are the output embedding; ``tie(embedding.weight)`` shares the first with an input
    embedding. ``options`` and the attribute ``implementation`` say how its loss is computed: see
    ``mixture_cross_entropy``. A subclass says how hidden states become components; it overrides nothing else. One that
    sets ``in_features`` has the width of hidden states checked.
    """

    in_features: int | None = None
    implementation: str = "auto"

    def __init__(
        self,
        num_classes: int,
        context_features: int,
        *,
        bias: bool = True,
        options: LossOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, context_features=context_features)
        check_options(options)
        self.context_features = context_features
        self.options = options
        self.weight = nn.Parameter(torch.empty(num_classes, context_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The weight uniform within 0.1 of zero, as an AWD-LSTM's, and no bias. Layers have this for themselves."""
        # By nn.init, which Transformers makes leave alone what a checkpoint has.
        nn.init.uniform_(self.weight, -0.1, 0.1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        names = ("in_features", "num_classes", "num_components", "context_features")
        shown = [f"{name}={value}" for name in names if (value := getattr(self, name, None)) is not None]
        return ", ".join([*shown, f"bias={self.bias is not None}"] + [f"options={self.options}"] * bool(self.options))

    @property
    def num_classes(self) -> int:
        """V, the rows of the weight: a tied embedding may have been resized."""
        return self.weight.shape[0]

    @abstractmethod
    def components(self, hidden: Tensor) -> Components:
        """Contexts (*, K, D) and prior logits (*, K) of hidden states (*, H)."""

    def _components(self, hidden: Tensor) -> Components:
        if self.in_features is not None and hidden.shape[-1:] != (self.in_features,):
            raise ValueError(f"hidden: expected shape (*, {self.in_features}), got {tuple(hidden.shape)}")
        return self.components(hidden)

    def tie(self, embedding: Tensor) -> None:
        """Use an input embedding (V, D), a parameter, as the output embedding."""
        if not isinstance(embedding, nn.Parameter):
            raise TypeError(f"embedding: expected a parameter, as embedding.weight, got {type(embedding).__name__}")
        if embedding.shape != self.weight.shape:
            raise ValueError(f"embedding: expected shape {tuple(self.weight.shape)}, got {tuple(embedding.shape)}")
        self.weight = embedding

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Loss in nats of hidden (*, H) for target (*): a scalar, or (*) for ``reduction="none"``."""
        context, prior_logits = self._components(hidden)
        return mixture_cross_entropy(
            context,
            prior_logits,
            self.weight,
            target,
            bias=self.bias,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            implementation=self.implementation,
            options=self.options,
        )

    def statistics(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> MixtureStatistics:
        """The same loss, with what its pass knows of the components: see ``mixture_statistics``.

        A head with one softmax at its end, which a mixture of contexts has too, is one component.
        """
        context, prior_logits = self._components(hidden)
        return mixture_statistics(
            context,
            prior_logits,
            self.weight,
            target,
            bias=self.bias,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            implementation=self.implementation,
            options=self.options,
        )

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Normalised log-probabilities (*, V) of hidden (*, H): see ``mixture_log_prob``."""
        return self._log_prob(*self._components(hidden))

    def _log_prob(self, context: Tensor, prior_logits: Tensor) -> Tensor:
        return mixture_log_prob(
            context,
            prior_logits,
            self.weight,
            bias=self.bias,
            implementation=self.implementation,
            options=self.options,
        )

    @torch.no_grad()
    def predict(self, hidden: Tensor) -> Tensor:
        """The most probable class (*) of each hidden state (*, H).

        Equal to ``log_prob(hidden).argmax(-1)``, without storing (tokens, V): so many tokens at a time that their
        log-probabilities fill ``options.block_bytes``, at least one.
        """
        context, prior_logits = self._components(hidden)
        settings = (self.options or LossOptions()).settings(context, self.weight)
        tokens = max(1, settings.block_bytes // (self.num_classes * settings.accumulation_dtype.itemsize))
        contexts = context.reshape(-1, *context.shape[-2:]).split(tokens)
        priors = prior_logits.reshape(-1, prior_logits.shape[-1]).split(tokens)
        best = [self._log_prob(*part).argmax(dim=-1) for part in zip(contexts, priors, strict=True)]
        return torch.cat(best).view(context.shape[:-2])


def dropout_of(module: nn.Module | None) -> nn.Module:
    """The module that a head applies to its contexts."""
    if module is None:
        return nn.Identity()
    if not isinstance(module, nn.Module):
        raise TypeError(f"context_dropout: expected a module, as nn.Dropout(0.1), got {module!r}")
    return module


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}: expected a whole number from 1 on, got {size!r}")
