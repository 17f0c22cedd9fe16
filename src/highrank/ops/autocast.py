"""Autocast, where the dtypes are settled already."""

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["is_autocast_on", "without_autocast"]


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    return torch.autocast(device_type, enabled=False) if is_autocast_on(device_type) else nullcontext()


def is_autocast_on(device_type: str) -> bool:
    """Never on "meta", where only shapes are computed."""
    # PyTorch 2.11's compiler cannot trace the first question, and would the second if there were none.
    compiling = torch.compiler.is_compiling()
    there = device_type != "meta" if compiling else torch.amp.is_autocast_available(device_type)
    return there and torch.is_autocast_enabled(device_type)
