"""Every random draw is a function of (seed, purpose, position): never of what was drawn before, or by whom.

A draw is made by a fresh generator whose seed is a hash of these. A run that is interrupted, resumed, or shared between
workers therefore draws the same numbers as one that is not. The bits may differ between device types, never between two
runs on one.
"""

import hashlib

import numpy as np
import torch

__all__ = ["derived_seed", "numpy_generator", "torch_generator"]


def derived_seed(seed: int, purpose: str, *position: int) -> int:
    """64 bits from the run's seed, what the draw is for, and where in the run it is made (step, micro-batch, ...)."""
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def torch_generator(device: torch.device | str, seed: int, purpose: str, *position: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *position))


def numpy_generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, purpose, *position)))
