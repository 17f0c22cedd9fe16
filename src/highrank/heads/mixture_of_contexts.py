"""Mixture of Contexts: the mixture is taken before the softmax, so the bottleneck stays. A control of equal size."""

from typing import final

import torch
from torch import Tensor, nn

from highrank.functional import LossOptions
from highrank.heads.head import Components, Head, check_sizes, dropout_of

__all__ = ["MixtureOfContexts"]


@final
class MixtureOfContexts(Head):
    """softmax(W sum_k pi_k tanh(P_k h) + b), with pi = softmax(R h).

    As many parameters as ``MixtureOfSoftmaxes`` and the rank of one softmax.

    Shape: hidden (*, in_features), target (*) -> scalar loss in nats. ``context_dropout`` is a module applied to the
    contexts (*, K, D) before they are mixed.
    Source: Yang et al. 2018, section 2.3 (arXiv 1711.03953).
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
        super().__init__(
            num_classes,
            in_features if context_features is None else context_features,
            bias=bias,
            options=options,
            device=device,
            dtype=dtype,
        )
        self.in_features = in_features
        self.num_components = num_components
        self.prior = nn.Linear(in_features, num_components, bias=False, device=device, dtype=dtype)
        self.projection = nn.Linear(in_features, num_components * self.context_features, device=device, dtype=dtype)
        self.context_dropout = dropout_of(context_dropout)

    def components(self, hidden: Tensor) -> Components:
        contexts = torch.tanh(self.projection(hidden))
        contexts = self.context_dropout(contexts.unflatten(-1, (self.num_components, self.context_features)))
        prior = torch.softmax(self.prior(hidden), dim=-1)
        context = (prior.unsqueeze(-2) @ contexts).squeeze(-2).unsqueeze(-2)
        return Components(context, context.new_zeros(context.shape[:-1]))
