"""What a caller may say about how the loss is computed."""

from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType

import torch
from torch import Tensor

from highrank.ops.walk import Settings

__all__ = ["LossOptions", "check_options"]

# On a CPU the matrix products run at full speed from about 32 MiB on; a GPU needs more to fill its processors. On
# both, every block reads and writes the sum of the weight's gradient, which takes the more time the smaller the block
# is beside the weight, so by default a block is no smaller than that (4 bytes a number), which the call
# needs in any case.
DEFAULT_BLOCK_BYTES = MappingProxyType({"cpu": 48 * 2**20, "other": 256 * 2**20})


@dataclass(frozen=True)
class LossOptions:
    """How ``mixture_cross_entropy`` spends memory, sums, and what it may leave out. None takes the default.

    block_bytes: size of one block of logits (tokens_in_block * K, V), which the products of as many contexts
        (tokens_in_block * K, D) stay within too. A block holds at least one token. Default: 48 MiB on a CPU, 256 MiB
        elsewhere, or the size of the weight in float32 if that is larger.
    accumulation_dtype: of log-sum-exps, sums and the weight gradient while it is summed (of the blocks' products, which
        ``chunked`` has in the inputs' dtype); float32 or float64 and no shorter than the inputs'. Default: float32 for
        half precision, the inputs' own otherwise. Where it is longer than the inputs', ``chunked`` has a part of a
        block in it as well, at least one token, and a part of the weight's gradient: each of at most ``block_bytes``,
        and on a CPU of 4 MiB.
    min_posterior: the posterior filter, which saves products on a CPU. A component whose posterior for a token is below
        this may be left out of the gradients of context, weight and bias (never of the prior's): what a token loses is
        at most 2 * (K - 1) * min_posterior of L1 norm in its logits' gradients, whose norm is up to 2 (up to a
        min_posterior of 1 / K: from there on all may go). With smoothed labels the component's share of the label takes
        the posterior's place. Tokens of weight zero are left out in the same way, exactly. Default: eps / (2 * K) of
        the accumulation dtype, so that what is left out stays below the rounding of the sums; with an optimizer that
        divides by the gradient's size (Adam), a component that is dead for every token then gets zero instead of next
        to nothing. 0 keeps every component.
    """

    block_bytes: int | None = None
    accumulation_dtype: torch.dtype | None = None
    min_posterior: float | None = None

    def __post_init__(self) -> None:
        if self.block_bytes is not None and not (isinstance(self.block_bytes, Integral) and self.block_bytes > 0):
            raise ValueError(f"block_bytes: expected a positive number of bytes, got {self.block_bytes!r}")
        if self.accumulation_dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"accumulation_dtype: expected torch.float32 or torch.float64, got {self.accumulation_dtype!r}"
            )
        if self.min_posterior is not None and not (
            isinstance(self.min_posterior, Real) and 0 <= self.min_posterior < 1
        ):
            raise ValueError(f"min_posterior: expected a number from 0 to below 1, got {self.min_posterior!r}")

    def block_bytes_for(self, device_type: str, num_classes: int, context_features: int) -> int:
        if self.block_bytes is not None:
            return int(self.block_bytes)
        least = DEFAULT_BLOCK_BYTES["cpu" if device_type == "cpu" else "other"]
        return max(least, 4 * num_classes * context_features)

    def settings(self, context: Tensor, weight: Tensor, label_smoothing: float = 0.0) -> Settings:
        """Every default filled in for a context (*, K, D) and a weight (V, D).

        Raises ValueError for sums shorter than their dtype.
        """
        dtype = self.accumulation_dtype or torch.promote_types(context.dtype, torch.float32)
        if torch.promote_types(dtype, context.dtype) != dtype:
            raise ValueError(f"accumulation_dtype: expected at least {context.dtype} like the inputs, got {dtype}")
        min_posterior = self.min_posterior
        if min_posterior is None:
            min_posterior = torch.finfo(dtype).eps / (2 * context.shape[-2])
        block_bytes = self.block_bytes_for(weight.device.type, *weight.shape)
        return Settings(block_bytes, dtype, min_posterior, label_smoothing)


def check_options(options: object) -> None:
    """Raises TypeError for what is neither LossOptions nor None."""
    if not isinstance(options, LossOptions | None):
        raise TypeError(f"options: expected LossOptions, got {options!r}")
