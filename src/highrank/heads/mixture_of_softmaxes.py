"""Mixture of Softmaxes: the head that breaks the softmax bottleneck."""

from typing import final

from torch import Tensor

from highrank.heads.head import Components
from highrank.heads.mixture import Mixture

__all__ = ["MixtureOfSoftmaxes"]


@final
class MixtureOfSoftmaxes(Mixture):
    """sum_k pi_k softmax(W tanh(P_k h) + b), with pi = softmax(R h).

    Shape: hidden (*, in_features), target (*) -> scalar loss in nats. ``context_features`` (D) defaults to
    ``in_features``. ``context_dropout`` is a module applied to the contexts (*, K, D).
    Source: Yang et al. 2018, section 2.2 (arXiv 1711.03953).
    """

    def components(self, hidden: Tensor) -> Components:
        return Components(self.contexts(hidden), self.prior(hidden))
