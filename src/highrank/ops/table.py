"""Which implementation computes the loss."""

from collections.abc import Callable
from types import MappingProxyType

from torch import Tensor

from highrank.ops import chunked, reference

__all__ = ["IMPLEMENTATIONS", "choose"]

Implementation = Callable[..., Tensor]

IMPLEMENTATIONS = MappingProxyType({"reference": reference.mixture_loss, "chunked": chunked.mixture_loss})


def choose(name: str) -> Implementation:
    """The implementation of that name; ``auto`` takes the best that can run. Raises ValueError with the reason."""
    if name == "auto":
        return IMPLEMENTATIONS["chunked"]
    if name == "triton":
        raise ValueError("implementation: 'triton' has no kernels yet; use 'auto', 'chunked' or 'reference'")
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected auto, {', '.join(IMPLEMENTATIONS)} or triton, got {name!r}")
    return IMPLEMENTATIONS[name]
