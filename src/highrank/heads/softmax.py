"""One softmax: the control that every mixture is compared with."""

from typing import final

import torch
from torch import Tensor, nn

from highrank.functional import LossOptions
from highrank.heads.head import Components, Head, check_sizes, dropout_of

__all__ = ["Softmax"]


@final
class Softmax(Head):
    """softmax(W h + b), or softmax(W tanh(P h) + b) with ``context_features``.

    Its log-probability matrix has rank at most context_features + 2 (the bias and the normaliser add one each).

    Shape: hidden (*, in_features), target (*) -> scalar loss in nats. ``context_dropout`` sees (*, 1, D).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        context_features: int | None = None,
        bias: bool = True,
        context_dropout: nn.Module | None = None,
        options: LossOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features=in_features)
        width = in_features if context_features is None else context_features
        super().__init__(num_classes, width, bias=bias, options=options, device=device, dtype=dtype)
        self.in_features = in_features
        self.projection = (
            None if context_features is None else nn.Linear(in_features, context_features, device=device, dtype=dtype)
        )
        self.context_dropout = dropout_of(context_dropout)

    def components(self, hidden: Tensor) -> Components:
        context = hidden if self.projection is None else torch.tanh(self.projection(hidden))
        context = self.context_dropout(context.unsqueeze(-2))
        return Components(context, context.new_zeros(context.shape[:-1]))
