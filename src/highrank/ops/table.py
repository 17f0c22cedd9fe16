"""Which implementation computes the loss."""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from highrank.ops import chunked, operator, reference, triton

__all__ = ["IMPLEMENTATIONS", "choose"]

Implementation = Callable[..., tuple[Tensor, Tensor]]

operator.WALKS["chunked"] = chunked.walk
operator.WALKS["triton"] = triton.walk

_TABLE: dict[str, Implementation] = {
    "reference": reference.mixture_loss,
    "chunked": partial(operator.fused_loss, implementation="chunked"),
    "triton": partial(operator.fused_loss, implementation="triton"),
}
IMPLEMENTATIONS = MappingProxyType(_TABLE)


def choose(name: str, device: torch.device) -> Implementation:
    """The implementation of that name; ``auto`` takes the best that can run. Raises ValueError with the reason."""
    if name == "auto":
        name = "triton" if device.type == "cuda" and triton.cannot_run(device) is None else "chunked"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected auto, {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    if name == "triton" and (reason := triton.cannot_run(device)):
        raise ValueError(f"implementation: 'triton' cannot run: {reason}")
    return IMPLEMENTATIONS[name]
