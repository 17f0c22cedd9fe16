"""All singular values of a large matrix: one call that takes minutes to an hour, and how long it will."""

import time
from functools import partial

import torch
from torch import Tensor

from highrank.duration import duration
from highrank.progress import SILENT, Display, by_the_clock

__all__ = ["is_oblong", "singular_values"]

OBLONG_FROM = 1.3
MEASURED_FROM = 2**31  # rows x columns x the lesser of both: about a second on one core
SAMPLE_S = 0.1  # a corner that takes this long tells the rate; the one before took an eighth


def singular_values(matrix: Tensor, *, task: str = "singular values", display: Display = SILENT) -> Tensor:
    """All singular values, descending, on the CPU. ``display`` is told what a large matrix will take, and the time as
    it passes.

    Those of a matrix with more columns than rows, or the reverse, are those of the triangle of its QR decomposition:
    several times faster than leaving that to LAPACK. An interrupted call ends at once, its computation goes on behind
    (see ``by_the_clock``).
    """
    rows, columns = matrix.shape
    if display is SILENT or rows * columns * min(rows, columns) < MEASURED_FROM:
        return _decomposed(matrix)
    seconds = _expected_seconds(matrix)
    copies = 2 if is_oblong(rows, columns) else 1
    gib = copies * matrix.element_size() * matrix.numel() / 2**30
    display.message(
        f"{task}: a full decomposition of {rows:,} x {columns:,} on {matrix.device}: about {duration(seconds)}, "
        f"judging by a corner of it, and {gib:.2f} GiB beside the matrix"
    )
    return by_the_clock(partial(_decomposed, matrix), display, task, seconds)


def is_oblong(rows: int, columns: int) -> bool:
    return max(rows, columns) >= OBLONG_FROM * min(rows, columns)


def _decomposed(matrix: Tensor) -> Tensor:
    square = matrix
    if is_oblong(*matrix.shape):
        square = torch.linalg.qr(matrix if len(matrix) > matrix.shape[1] else matrix.T, mode="r")[1]
    values: Tensor = torch.linalg.svdvals(square)
    return values.cpu()  # a GPU has come to the end now


def _expected_seconds(matrix: Tensor) -> float:
    """From a corner of the matrix, of its shape: the operations grow with the third power of its side.

    The corner is the smallest that takes long enough to tell; a quarter of each side at most, a 64th of the whole.
    """
    shrunk = 64
    while True:
        corner = matrix[: -(-len(matrix) // shrunk), : -(-matrix.shape[1] // shrunk)]
        # The first call loads libraries, and either may be held up by other work.
        elapsed = min(_seconds(corner), _seconds(corner))
        if elapsed > SAMPLE_S or shrunk == 4:
            return elapsed * shrunk**3
        shrunk //= 2


def _seconds(matrix: Tensor) -> float:
    began = time.perf_counter()
    _decomposed(matrix)
    return time.perf_counter() - began
