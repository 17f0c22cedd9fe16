"""What the mixtures share: K projections of a hidden state, and their prior."""

import torch
from torch import Tensor, nn

from highrank.functional import LossOptions
from highrank.heads.head import Head, check_sizes, dropout_of

__all__ = ["Mixture"]


class Mixture(Head):
    """Contexts tanh(P_k h), and prior logits R h; a subclass says what is mixed.

    ``context_features`` (D) defaults to ``in_features``; ``context_dropout`` is a module applied to the contexts
    (*, K, D).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        num_components: int,
        context_features: int | None = None,
        bias: bool = True,
        context_dropout: nn.Module | None = None,
        options: LossOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features=in_features, num_components=num_components)
        context_features = in_features if context_features is None else context_features
        super().__init__(num_classes, context_features, bias=bias, options=options, device=device, dtype=dtype)
        self.in_features = in_features
        self.num_components = num_components
        self.prior = nn.Linear(in_features, num_components, bias=False, device=device, dtype=dtype)
        self.projection = nn.Linear(in_features, num_components * context_features, device=device, dtype=dtype)
        self.context_dropout = dropout_of(context_dropout)

    def contexts(self, hidden: Tensor) -> Tensor:
        """(*, K, D) of hidden (*, H)."""
        contexts = torch.tanh(self.projection(hidden))
        dropped: Tensor = self.context_dropout(contexts.unflatten(-1, (self.num_components, self.context_features)))
        return dropped
