"""The rank of a log-probability matrix: what a model's head can express, seen in the singular values."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.errors import UserError
from highrank.evaluate.decomposition import is_oblong, singular_values
from highrank.progress import SILENT, Display, by_the_clock
from highrank.runs.device import total_memory

__all__ = ["RELATIVE_THRESHOLDS", "Rank", "announce_memory", "measure_rank", "rank"]

RELATIVE_THRESHOLDS = (1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
BLOCK_BYTES = 32 << 20
# Of a row's probabilities: far above the rounding of log-probabilities down to -30 or so, far below what logits give.
SUM_TOLERANCE, SUM_TOLERANCE_EPSILONS = 1e-3, 16
# A sketch of an eighth of the columns costs some per cent of a whole decomposition, and where it suffices replaces it.
SKETCH_SHARE = 8
SKETCH_FROM = 1024
SKETCH_SEED = 1


@dataclass(frozen=True, eq=False)
class Rank:
    """What ``rank`` returns.

    singular_values: float64 on the CPU, descending. All min(N, V) of them, or, of a matrix of low rank, the largest
        ones: then every other one is below ``threshold`` for certain.
    numerical_rank: how many exceed ``threshold`` = 0.5 * sqrt(N + V + 1) * largest * epsilon of ``precision``.
    precision: of the numbers in the matrix: that of its dtype, or float32 if a float64 matrix holds nothing finer.
    ranks: by relative threshold, how many exceed it times the largest. Those that lie below ``threshold`` are left out:
        they would count noise.
    effective_rank: exp of the entropy of the singular values above ``threshold``, divided by their sum (Roy and
        Vetterli 2007).
    mean_kl_nats: KL(p_i || p_j), the mean over all ordered pairs of different contexts.
    dtype: in which the singular values were computed: float64, always.
    """

    contexts: int
    vocabulary: int
    singular_values: Tensor
    numerical_rank: int
    threshold: float
    precision: str
    ranks: Mapping[float, int]
    effective_rank: float
    mean_kl_nats: float
    dtype: str
    device: str
    elapsed_s: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "contexts": self.contexts,
            "vocabulary": self.vocabulary,
            "numerical_rank": self.numerical_rank,
            "threshold": self.threshold,
            "precision": self.precision,
            "ranks": [{"relative_threshold": relative, "rank": count} for relative, count in self.ranks.items()],
            "effective_rank": self.effective_rank,
            "mean_kl_nats": self.mean_kl_nats,
            "dtype": self.dtype,
            "device": self.device,
            "elapsed_s": round(self.elapsed_s, 3),
            "singular_values": self.singular_values.tolist(),
        }


def rank(
    log_probs: Tensor | NDArray[Any],
    *,
    relative_thresholds: Sequence[float] = RELATIVE_THRESHOLDS,
    device: torch.device | str | None = None,
    display: Display = SILENT,
) -> Rank:
    """The rank of a matrix of log-probabilities: a row for each context, a column for each word.

    A single softmax over D features with a bias can reach D + 2, whatever the language needs; D + 1 without a bias.

    Which precision decides what:

    - The singular values are those of a full decomposition in float64, whose own error is some epsilons of the largest
      one, under the round-off threshold. Eigenvalues of the Gram matrix would be lost below 1e-8 of the largest.
    - The threshold says what rounding can have made, so its epsilon is that of the numbers in the matrix. A float32
      matrix is decomposed in float64, but held against float32's epsilon; so is a float64 matrix that was float32
      before (found out by its digits).
    - Log-probabilities that were rounded to float32 on their way and then computed on in float64 hide that. Their
      noise, 6e-8 of each number, lies above the threshold, and every head looks as if it were of full rank. To see the
      bound of a softmax, compute the head, from its hidden states on, in float64: ``copy.deepcopy(head).double()``, as
      ``double()`` alone converts the model's own weights, a tied embedding's too.

    Shape: log_probs (N, V), a tensor or array of floating-point numbers, at least 2 x 2.
    Memory: two copies of the matrix in float64, three if it is not square, and some blocks. Announced on ``display``
    before it is taken.
    device: where to compute (default: where the tensor is; a GPU in float64 is many times faster).
    Raises UserError (a ValueError): not a matrix, NaN or infinities, rows that are not log-probabilities, too little
    memory.
    Source: Yang et al. 2018, section 3 (arXiv 1711.03953); the threshold: Press et al., Numerical Recipes, 3rd edition.
    """
    shape = tuple(log_probs.shape)
    if len(shape) != 2 or min(shape) < 2:
        raise UserError(f"log_probs: expected a matrix (contexts, words) of at least 2 x 2, got shape {shape}")
    precision = _precision(log_probs)
    if device is None:
        device = log_probs.device if isinstance(log_probs, Tensor) else "cpu"
    announce_memory(shape[0], shape[1], device, display)
    if not isinstance(log_probs, Tensor):  # a copy: what is read-only or mapped from a file stays as it is
        log_probs = torch.from_numpy(np.array(log_probs, dtype=np.float64))
    matrix_NV = log_probs.detach().to(device, torch.float64)
    return measure_rank(matrix_NV, precision=precision, relative_thresholds=relative_thresholds, display=display)


def announce_memory(contexts: int, vocabulary: int, device: torch.device | str, display: Display) -> None:
    """Say what a matrix of this size takes. Raises UserError if the device has less."""
    # The matrix and the copy that is decomposed; of one that is not square also the triangle.
    copies = 3 if is_oblong(contexts, vocabulary) else 2
    needed = copies * 8 * contexts * vocabulary + 4 * BLOCK_BYTES
    there = total_memory(torch.device(device))
    said = f"rank of {contexts:,} contexts x {vocabulary:,} words, in float64"
    if there is not None and needed > there:
        raise UserError(
            f"{said}: needs {needed / 2**30:.1f} GiB, but {device} has {there / 2**30:.1f}; take fewer contexts"
        )
    display.message(f"{said}: {needed / 2**30:.2f} GiB of memory at most, on {device}")


def measure_rank(
    matrix_NV: Tensor,
    *,
    precision: torch.dtype = torch.float64,
    relative_thresholds: Sequence[float] = RELATIVE_THRESHOLDS,
    display: Display = SILENT,
) -> Rank:
    """``rank`` of a float64 matrix whose numbers have the digits of ``precision``."""
    started = time.perf_counter()
    found = _walk(matrix_NV, SUM_TOLERANCE + SUM_TOLERANCE_EPSILONS * torch.finfo(precision).eps, display)
    if precision == torch.float64 and found.is_float32:
        precision = torch.float32
    values = _singular_values(matrix_NV, torch.finfo(precision).eps, display).cpu()
    threshold = _round_off(matrix_NV, values, torch.finfo(precision).eps)
    above = values[values > threshold]
    share = above / above.sum()
    return Rank(
        contexts=matrix_NV.shape[0],
        vocabulary=matrix_NV.shape[1],
        singular_values=values,
        numerical_rank=len(above),
        threshold=threshold,
        precision=str(precision).removeprefix("torch."),
        ranks={
            relative: int((values > level).sum())
            for relative in relative_thresholds
            if (level := relative * values[0]) >= threshold
        },
        effective_rank=float(torch.special.entr(share).sum().exp()),
        mean_kl_nats=found.mean_kl_nats,
        dtype="float64",
        device=str(matrix_NV.device),
        elapsed_s=time.perf_counter() - started,
    )


def _precision(log_probs: Tensor | NDArray[Any]) -> torch.dtype:
    if isinstance(log_probs, Tensor):
        is_floating, precision = log_probs.is_floating_point(), log_probs.dtype
    else:
        is_floating = np.issubdtype(log_probs.dtype, np.floating)
        precision = {2: torch.float16, 4: torch.float32}.get(log_probs.dtype.itemsize, torch.float64)
    if not is_floating:
        raise UserError(f"log_probs: expected floating-point numbers, got {log_probs.dtype}")
    return precision


def _round_off(matrix_NV: Tensor, values: Tensor, epsilon: float) -> float:
    return float(0.5 * (sum(matrix_NV.shape) + 1) ** 0.5 * values[0] * epsilon)


class _Walk(NamedTuple):
    mean_kl_nats: float
    is_float32: bool


def _walk(matrix_NV: Tensor, tolerance: float, display: Display) -> _Walk:
    """What one pass over the rows tells. Raises UserError for rows that are not log-probabilities.

    The sum over pairs of p_i (log p_i - log p_j) needs no pairs: it is that of the negative entropies less the product
    of the columns' sums, of p and of log p.
    """
    contexts, vocabulary = matrix_NV.shape
    prob_sum_V, log_sum_V = matrix_NV.new_zeros(vocabulary), matrix_NV.new_zeros(vocabulary)
    negative_entropy = matrix_NV.new_zeros(())
    is_float32 = True
    for start, block_RV in _blocks(matrix_NV):
        _check(start, block_RV, tolerance)
        prob_RV = block_RV.exp()
        negative_entropy += (prob_RV * block_RV).sum()
        prob_sum_V += prob_RV.sum(0)
        log_sum_V += block_RV.sum(0)
        is_float32 = is_float32 and block_RV.float().double().equal(block_RV)
        display.progress("divergence of contexts", start + len(block_RV), contexts, unit="contexts")
    pairs_sum = contexts * negative_entropy - prob_sum_V @ log_sum_V
    return _Walk(float(pairs_sum) / (contexts * (contexts - 1)), is_float32)


def _blocks(matrix_NV: Tensor) -> Iterator[tuple[int, Tensor]]:
    rows = max(1, BLOCK_BYTES // (8 * matrix_NV.shape[1]))
    for start in range(0, len(matrix_NV), rows):
        yield start, matrix_NV[start : start + rows]


def _check(start: int, block_RV: Tensor, tolerance: float) -> None:
    bad = (~block_RV.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise UserError(
            f"log_probs: expected finite numbers, got {float(block_RV[row, column])} for context {start + row}, "
            f"word {column} (both from 0)"
        )
    sum_R = block_RV.logsumexp(1)
    wrong = (sum_R.abs() > tolerance).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"log_probs: expected log-probabilities, whose exp sums to 1 in each row, but that of row {start + row} "
            f"(from 0) sums to {float(sum_R[row].exp()):.6g}; take log_softmax of logits, and log of probabilities"
        )


def _singular_values(matrix_NV: Tensor, epsilon: float, display: Display) -> Tensor:
    few = _of_low_rank(matrix_NV, epsilon, display)
    return singular_values(matrix_NV, display=display) if few is None else few


def _of_low_rank(matrix_NV: Tensor, epsilon: float, display: Display) -> Tensor | None:
    """The largest singular values if those certainly are all that exceed the round-off threshold; else None.

    Q holds an orthonormal basis of the matrix times random columns (Halko et al. 2011, arXiv 0909.4061). Whatever Q is,
    the i-th singular value of the matrix lies between that of Q^T A and the same plus the norm of A - Q Q^T A.
    """
    size = min(matrix_NV.shape)
    if size < SKETCH_FROM:
        return None
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    sketch_VS = torch.randn(matrix_NV.shape[1], size // SKETCH_SHARE, dtype=torch.float64, generator=generator)
    basis_NS, small_SV = by_the_clock(
        lambda: _projected(matrix_NV, sketch_VS.to(matrix_NV.device)), display, "sketch of the matrix"
    )
    square = matrix_NV.new_zeros(())
    for start, block_RV in _blocks(matrix_NV):
        square += (block_RV - basis_NS[start : start + len(block_RV)] @ small_SV).square().sum()
        display.progress("sketch of the matrix", start + len(block_RV), len(matrix_NV), unit="contexts")
    values = singular_values(small_SV, task="singular values of the sketch", display=display)
    left_out = float(square.sqrt())  # the Frobenius norm, which is no smaller than the largest singular value
    threshold = _round_off(matrix_NV, values, epsilon)
    below = values[values <= threshold]
    return values if len(below) and float(below[0]) + left_out < threshold else None


def _projected(matrix_NV: Tensor, sketch_VS: Tensor) -> tuple[Tensor, Tensor]:
    basis_NS = torch.linalg.qr(matrix_NV @ sketch_VS)[0]
    return basis_NS, basis_NS.T @ matrix_NV
