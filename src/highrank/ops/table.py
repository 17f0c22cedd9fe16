"""Which implementation computes the loss."""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

from torch import Tensor

from highrank.ops import chunked, operator, reference

__all__ = ["IMPLEMENTATIONS", "choose"]

Implementation = Callable[..., tuple[Tensor, Tensor]]

operator.WALKS["chunked"] = chunked.walk

_TABLE: dict[str, Implementation] = {
    "reference": reference.mixture_loss,
    "chunked": partial(operator.fused_loss, implementation="chunked"),
}
IMPLEMENTATIONS = MappingProxyType(_TABLE)


def choose(name: str) -> Implementation:
    """The implementation of that name; ``auto`` takes the best that can run. Raises ValueError with the reason."""
    if name == "auto":
        return IMPLEMENTATIONS["chunked"]
    if name == "triton":
        raise ValueError("implementation: 'triton' has no kernels yet; use 'auto', 'chunked' or 'reference'")
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected auto, {', '.join(IMPLEMENTATIONS)} or triton, got {name!r}")
    return IMPLEMENTATIONS[name]
