"""Is what was written on the disk? Byte by byte, against what was to be written and not against the file's own word."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from highrank.errors import UserError
from highrank.files import to_disk
from highrank.runs.tensors import read_tensors

__all__ = ["written_differently"]


def written_differently(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """How ``path``, read from the disk, differs from ``tensors``, in a few words; None if every byte is there.

    Memory: one tensor beside those given. Raises OSError if ``path`` cannot be brought to the disk.
    """
    to_disk(path)
    try:
        found = read_tensors(path)
    except UserError as error:
        return f"unreadable: {error}"
    if strange := sorted(found.keys() ^ tensors.keys()):
        return f"{strange[0]} is in one of them only"
    for name, tensor in tensors.items():
        if found[name].dtype != tensor.dtype or found[name].shape != tensor.shape:
            return f"{name} has another shape or type"
        if not torch.equal(_bytes(found[name]), _bytes(tensor)):
            return f"{name} differs"
    return None


def _bytes(tensor: Tensor) -> Tensor:
    """Not the numbers: a nan is not equal to itself, and zero has two signs."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
