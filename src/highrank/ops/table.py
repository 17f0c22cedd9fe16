"""Which implementation computes the loss."""

import warnings
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from highrank.ops import chunked, operator, reference, triton
from highrank.ops.walk import Gradients

__all__ = ["IMPLEMENTATIONS", "choose"]

Implementation = Callable[..., tuple[Tensor, Tensor]]

_GIVEN_UP: set[torch.device] = set()  # where the kernels have failed in this process


def _kernels_if_they_work(*arguments: Any, **keywords: Any) -> tuple[Tensor, Gradients]:
    """What is asked of a compiler, a driver and a GPU that nobody has seen together: see ``ops.walk.Walk``."""
    device = arguments[0].device
    if device not in _GIVEN_UP:
        try:
            return triton.walk(*arguments, **keywords)
        except triton.KernelError as error:
            _GIVEN_UP.add(device)
            warnings.warn(
                f"highrank: the loss's kernels fail on {device}, plain PyTorch takes their place "
                f"(implementation='chunked'): {error}",
                RuntimeWarning,
                stacklevel=1,  # PyTorch calls this: there is no line of the caller's to name
            )
    return chunked.walk(*arguments, **keywords)


operator.WALKS["chunked"] = chunked.walk
operator.WALKS["triton"] = triton.walk
operator.WALKS["auto"] = _kernels_if_they_work

_AUTO_ON_A_GPU = partial(operator.fused_loss, implementation="auto")
_TABLE: dict[str, Implementation] = {
    "reference": reference.mixture_loss,
    "chunked": partial(operator.fused_loss, implementation="chunked"),
    "triton": partial(operator.fused_loss, implementation="triton"),
}
IMPLEMENTATIONS = MappingProxyType(_TABLE)


def choose(name: str, device: torch.device) -> Implementation:
    """The implementation of that name; ``auto`` takes the best that can run. Raises ValueError with the reason."""
    if name == "auto":
        if device.type == "cuda" and triton.cannot_run(device) is None:
            return _AUTO_ON_A_GPU
        name = "chunked"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected auto, {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    if name == "triton" and (reason := triton.cannot_run(device)):
        raise ValueError(f"implementation: 'triton' cannot run: {reason}")
    return IMPLEMENTATIONS[name]
