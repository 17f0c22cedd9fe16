"""Means of a figure over bands of tokens: by frequency, by position, by entropy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Band", "Bands", "equal_bands", "fixed_bands", "over_bands"]


class Band(NamedTuple):
    """The tokens with low <= value <= high; ``high`` None: no upper end. ``indices`` says which they are."""

    low: float
    high: float | None
    indices: NDArray[np.int64]


Bands = Sequence[Band]


def fixed_bands(values: NDArray[np.int64], starts: Sequence[int]) -> list[Band]:
    """Bands of whole numbers that begin at ``starts`` (ascending, the first at most the smallest value); none empty."""
    number = np.searchsorted(np.asarray(starts), values, side="right") - 1
    ends = [start - 1 for start in starts[1:]]
    bands = [
        Band(low, high, np.flatnonzero(number == index))
        for index, (low, high) in enumerate(zip(starts, [*ends, None], strict=True))
    ]
    return [band for band in bands if len(band.indices)]


def equal_bands(values: NDArray[Any], count: int) -> list[Band]:
    """``count`` bands of as many tokens each (fewer of a shorter text), in ascending order of value."""
    parts = np.array_split(np.argsort(values, kind="stable"), min(count, len(values)))
    return [Band(values[part[0]].item(), values[part[-1]].item(), part) for part in parts]


def over_bands(bands: Bands, **columns: NDArray[np.float64]) -> list[dict[str, Any]]:
    """A row for each band: from, to, tokens, and the mean of each column. Ready for JSON."""
    return [
        {"from": band.low, "to": band.high, "tokens": len(band.indices)}
        | {name: float(values[band.indices].mean()) for name, values in columns.items()}
        for band in bands
    ]
