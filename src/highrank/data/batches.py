"""Text as columns, columns as segments: the one walk that training, evaluation and dynamic evaluation share."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.errors import UserError
from highrank.random import numpy_generator

__all__ = ["SHORTEST_TRAINING_COLUMN", "Columns", "Segment", "segment_length"]


SHORTEST_COLUMN = 2  # one prediction
SHORTEST_TRAINING_COLUMN = 3  # training and gradient statistics leave out a last segment of one prediction


class Segment(NamedTuple):
    """tokens (T, B) and the tokens that follow them, target (T, B); int64. ``start`` is the position in the columns."""

    start: int
    tokens: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "Segment":
        """The same there, without waiting for it."""
        if device.type == "cpu":
            return self
        # From ordinary memory a copy would make the host wait until the device has done all that it was asked for.
        tokens, target = (x.pin_memory().to(device, non_blocking=True) for x in (self.tokens, self.target))
        return Segment(self.start, tokens, target)


class Columns:
    """A text cut into ``batch`` columns of equal length, the remainder dropped. Reads only what a segment needs.

    Raises UserError for a text that is too short, in the words ``what`` it is and which ``setting`` the batch is.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        batch: int,
        *,
        what: str = "text",
        setting: str = "batch",
        shortest: int = SHORTEST_COLUMN,
    ) -> None:
        length = len(tokens) // batch
        if length < shortest:
            raise UserError(
                f"{what}: {len(tokens)} tokens are too few for a batch of {batch} columns, "
                f"which needs at least {shortest * batch}; use a smaller {setting} or more text"
            )
        self._columns = tokens[: length * batch].reshape(batch, length)
        self._turns: NDArray[np.int64] | None = None
        self.batch = batch
        self.length = length

    @property
    def predicted_tokens(self) -> int:
        """How many tokens have a token before them in their column."""
        return self.batch * (self.length - 1)

    def turned(self, seed: int, epoch: int) -> "Columns":
        """Each column begins at a random token of its own and ends with what stood before it.

        The partial shuffle of Press 2019 (arXiv 1903.04167): other columns side by side, other segment borders, in
        every epoch. One prediction a column, at the seam, is of a word that does not follow.
        """
        other = copy.copy(self)
        other._turns = numpy_generator(seed, "turned-columns", epoch).integers(self.length, size=self.batch)
        return other

    def segment(self, start: int, length: int, *, first: int = 0, batch: int | None = None) -> Segment:
        """At most ``length`` predictions from ``start`` on, of ``batch`` columns from ``first`` on (default: all)."""
        last = self.batch if batch is None else first + batch
        stop = min(start + length, self.length - 1)
        part = np.ascontiguousarray(self._read(slice(first, last), start, stop + 1).T, dtype=np.int64)
        part_TB = torch.from_numpy(part)
        return Segment(start, part_TB[:-1], part_TB[1:])

    def _read(self, rows: slice, start: int, stop: int) -> NDArray[np.int32]:
        if self._turns is None:
            return self._columns[rows, start:stop]
        places = (self._turns[rows, None] + np.arange(start, stop)) % self.length
        return np.take_along_axis(self._columns[rows], places, axis=1)

    def segments(self, length: int) -> Iterator[Segment]:
        """The whole text in segments of ``length``; the last one holds what is left."""
        for start in range(0, self.length - 1, length):
            yield self.segment(start, length)


def segment_length(seed: int, step: int, bptt: int, max_length_delta: int) -> int:
    """The random length of a training segment, so that segment borders fall elsewhere in every epoch.

    ``bptt`` with probability 0.95, else half of it, then a normal draw with standard deviation 5 around that; at least
    5 and at most ``bptt + max_length_delta``. Source: Merity et al. 2017, section 5.
    """
    generator = numpy_generator(seed, "segment-length", step)
    mean = bptt if generator.random() < 0.95 else bptt / 2
    return min(max(5, int(generator.normal(mean, 5))), bptt + max_length_delta)
