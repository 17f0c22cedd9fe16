"""Which implementation computes the loss."""

import warnings
from typing import Any

import torch
from torch import Tensor

from highrank.ops import chunked, triton
from highrank.ops.walk import Gradients, Walk

__all__ = ["IMPLEMENTATIONS", "WALKS", "choose"]

IMPLEMENTATIONS = ("reference", "chunked", "triton")

_GIVEN_UP: set[torch.device] = set()  # where the kernels have failed in this process


def choose(name: str, device: torch.device) -> str:
    """The name of what is to compute: "reference" or one of ``WALKS``. Raises ValueError if that cannot run there."""
    if name == "auto":
        return "auto" if device.type == "cuda" and triton.cannot_run(device) is None else "chunked"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected auto, {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    if name == "triton" and (reason := triton.cannot_run(device)):
        raise ValueError(f"implementation: 'triton' cannot run: {reason}")
    return name


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


# The arguments of an operator can name a function but not carry it.
WALKS: dict[str, Walk] = {"auto": _kernels_if_they_work, "chunked": chunked.walk, "triton": triton.walk}
