"""A mixture of softmaxes that begins as the one softmax that a model was trained with."""

from typing import final

from torch import Tensor, nn

from highrank.functional import LossOptions
from highrank.heads.head import Components, Head, check_sizes, dropout_of

__all__ = ["GrownMixture"]


class FromZero(nn.Linear):
    """A linear layer that starts at zero, also where it is reset by itself."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


@final
class GrownMixture(Head):
    """sum_k pi_k softmax(W (h + tanh(S_k h)) + b), with pi = softmax(R h), over a trained layer W h + b.

    The shifts S_k, which have a bias, start at zero: the head equals ``softmax(linear(h))`` until it is trained. The
    priors R differ from the start, so the components part. A shift is at most 1 in each feature.
    weight and bias are the parameters of ``linear`` themselves: they go on being trained, and stay tied to an input
    embedding if they were. The new ones have their device and dtype.

    Shape: hidden (*, linear.in_features), target (*) -> scalar loss in nats. ``context_dropout`` is a module applied to
    the contexts (*, K, H). Raises TypeError for what is no ``nn.Linear``.
    Source: Yang et al. 2018, section 2.2 (arXiv 1711.03953); a larger network that begins as the function of the
    smaller one: Chen et al. 2016 (arXiv 1511.05641).
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        num_components: int,
        context_dropout: nn.Module | None = None,
        options: LossOptions | None = None,
    ) -> None:
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected a linear layer, as model.lm_head, got {type(linear).__name__}")
        check_sizes(num_components=num_components)
        width = linear.in_features
        # On no device: the output embedding that a head makes for itself is not needed.
        super().__init__(linear.out_features, width, bias=linear.bias is not None, options=options, device="meta")
        self.tie(linear.weight)
        self.bias = linear.bias
        self.in_features = width
        self.num_components = num_components
        device, dtype = linear.weight.device, linear.weight.dtype
        self.prior = nn.Linear(width, num_components, bias=False, device=device, dtype=dtype)
        self.shift = FromZero(width, num_components * width, device=device, dtype=dtype)
        self.context_dropout = dropout_of(context_dropout)

    def components(self, hidden: Tensor) -> Components:
        shift = self.shift(hidden).unflatten(-1, (self.num_components, -1))
        contexts = self.context_dropout(hidden.unsqueeze(-2) + shift.tanh())
        return Components(contexts, self.prior(hidden))
