"""Autocast, where the dtypes are settled already."""

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["has_autocast", "without_autocast"]


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    return torch.autocast(device_type, enabled=False) if has_autocast(device_type) else nullcontext()


def has_autocast(device_type: str) -> bool:
    """Not on "meta", where only shapes are computed."""
    if torch.compiler.is_compiling():  # PyTorch 2.11's compiler cannot trace the question
        return device_type != "meta"
    return torch.amp.is_autocast_available(device_type)
