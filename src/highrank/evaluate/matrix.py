"""A saved matrix, of a model that is not ours: .npy or .safetensors, never a pickle."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from highrank.errors import UserError
from highrank.reading import file_size
from highrank.runs.tensors import read_tensors

__all__ = ["read_matrix"]


def read_matrix(path: Path) -> "Tensor | NDArray[Any]":
    """The array of a .npy file, left on the disk until it is used, or the one tensor of a .safetensors file.

    Raises UserError: no such file, another kind of file, a damaged one, or objects instead of numbers in it.
    """
    if path.suffix == ".safetensors":
        tensors = read_tensors(path, from_elsewhere=True)
        if len(tensors) != 1:
            raise UserError(f"{path}: expected one tensor, got {len(tensors)}")
        return next(iter(tensors.values()))
    if path.suffix != ".npy":
        raise UserError(f"{path}: expected a .npy or a .safetensors file")
    file_size(path)  # a plain file, or an error
    try:
        # Not np.load, which would take a zip archive too; neither unpickles.
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy's parser of the header raises whatever Python's own tokenizer and parser do
        raise UserError(f"{path}: damaged or not a .npy file of numbers ({error})") from error
    return array
