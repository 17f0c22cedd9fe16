"""Mixture of Contexts: the mixture is taken before the softmax, so the bottleneck stays. A control of equal size."""

from typing import final

import torch
from torch import Tensor

from highrank.heads.head import Components
from highrank.heads.mixture import Mixture

__all__ = ["MixtureOfContexts"]


@final
class MixtureOfContexts(Mixture):
    """softmax(W sum_k pi_k tanh(P_k h) + b), with pi = softmax(R h).

    As many parameters as ``MixtureOfSoftmaxes`` and the rank of one softmax.

    Shape: hidden (*, in_features), target (*) -> scalar loss in nats. ``context_dropout`` is a module applied to the
    contexts (*, K, D) before they are mixed.
    Source: Yang et al. 2018, section 2.3 (arXiv 1711.03953).
    """

    def components(self, hidden: Tensor) -> Components:
        prior = torch.softmax(self.prior(hidden), dim=-1)
        context = prior.unsqueeze(-2) @ self.contexts(hidden)
        return Components(context, context.new_zeros(context.shape[:-1]))
