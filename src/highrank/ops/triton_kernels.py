"""The one kernel between the matrix products, its launch table, and its launch.

This module imports triton: take it where kernels run, not where highrank is imported.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from highrank.ops.triton import KernelError

__all__ = ["INTERPRETED", "LAUNCHES", "Launch", "target_log_prob", "target_log_prob_kernel"]


class Launch(NamedTuple):
    """How rows of up to so many columns are read: 16 bytes a lane at a time."""

    columns: int
    rows: int  # a program
    lanes: int  # a row
    warps: int  # a program


# Short rows: few lanes. Long rows: many warps, so that fewer rows are under way and stay in the caches, where the
# second pass finds them: 132 processors of 2048 threads hold 2112 rows of 10,000 in half precision (42 MB) and 528 rows
# of 33,278 (35 MB); an H100 has 50 MB of second-level cache.
LAUNCHES = (Launch(1024, 1, 64, 1), Launch(16_384, 1, 256, 4), Launch(2**31 - 1, 1, 512, 16))
CHECKED_ROWS = 8
INTERPRETED = Launch(2**31 - 1, 64, 256, 1)  # the interpreter takes its time by the operation, not by the number
_CHECKED: set[tuple[object, ...]] = set()  # the binaries that have given right numbers in this process

# A running maximum cannot start at -inf: where nothing larger comes, the difference of two infinities would be NaN.
LOWEST: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).min)


# One binary for each dtype and number of columns: specialised on nothing that differs between blocks or batches.
@triton.jit(do_not_specialize=["num_rows", "components"], do_not_specialize_on_alignment=["target_N"])
def target_log_prob_kernel(
    logits_RU,
    target_N,
    log_prob_R,
    num_rows,
    components,
    COLUMNS: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """See ``target_log_prob``. Some rows (R) a program, in tiles of lanes and vectors (L, W), read once or twice."""
    dtype: tl.constexpr = log_prob_R.dtype.element_ty
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists_R = row_R < num_rows
    exists_R11 = exists_R[:, None, None]
    logits_R = logits_RU + row_R.to(tl.int64) * COLUMNS
    target_R = tl.load(target_N + row_R // components, mask=exists_R, other=0)
    target_logit_R = tl.load(logits_R + target_R, mask=exists_R, other=0).to(dtype)
    tile_LW = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]

    # Each lane has its own running maximum and sum of exp(logit - maximum), so that lanes meet once, at the end.
    top_RL = tl.full((ROWS, LANES), LOWEST, dtype)
    total_RL = tl.full((ROWS, LANES), 0, dtype)
    for start in range(0, COLUMNS, LANES * VECTOR):
        u_1LW = (start + tile_LW)[None, :, :]
        logits_RLW = tl.load(
            logits_R[:, None, None] + u_1LW, mask=exists_R11 & (u_1LW < COLUMNS), other=float("-inf")
        ).to(dtype)
        higher_RL = tl.maximum(top_RL, tl.max(logits_RLW, 2))
        total_RL = total_RL * tl.exp(top_RL - higher_RL) + tl.sum(tl.exp(logits_RLW - higher_RL[:, :, None]), 2)
        top_RL = higher_RL
    top_R = tl.max(top_RL, 1)
    total_R = tl.sum(total_RL * tl.exp(top_RL - top_R[:, None]), 1)
    tl.store(log_prob_R + row_R, target_logit_R - top_R - tl.log(total_R), mask=exists_R)

    if GRADIENT:
        scale_R = 1 / total_R
        tl.debug_barrier()  # every warp has read the target's logit before any overwrites it
        for start in range(0, COLUMNS, LANES * VECTOR):
            u_1LW = (start + tile_LW)[None, :, :]
            at_RLW = logits_R[:, None, None] + u_1LW
            mask_RLW = exists_R11 & (u_1LW < COLUMNS)
            logits_RLW = tl.load(at_RLW, mask=mask_RLW, other=float("-inf")).to(dtype)
            prob_RLW = tl.exp(logits_RLW - top_R[:, None, None]) * scale_R[:, None, None]
            tl.store(at_RLW, prob_RLW.to(logits_RU.dtype.element_ty), mask=mask_RLW)
        tl.debug_barrier()  # the target's probability is written before its gradient replaces it
        gradient_R = tl.exp(target_logit_R - top_R) * scale_R - 1
        tl.store(logits_R + target_R, gradient_R.to(logits_RU.dtype.element_ty), mask=exists_R)


def target_log_prob(logits_RU: Tensor, target_N: Tensor, dtype: torch.dtype, gradient: bool) -> Tensor:
    """log_softmax(logits)[target] of each row (R), computed in ``dtype``. R = N * K: K rows share a target.

    With ``gradient`` the logits become softmax(logits) - onehot(target). U must be a multiple of 16, so that every read
    and write is of 16 bytes: logits that are only there to fill a row are -inf. What a binary's first launch gives is
    compared with PyTorch's: KernelError if it is something else, or does not come about.
    """
    rows, columns = logits_RU.shape
    log_prob_R = logits_RU.new_empty(rows, dtype=dtype)
    launch = next(launch for launch in LAUNCHES if columns <= launch.columns)
    if triton.knobs.runtime.interpret:
        launch = INTERPRETED

    def launched() -> None:
        target_log_prob_kernel[(triton.cdiv(rows, launch.rows),)](
            logits_RU,
            target_N,
            log_prob_R,
            rows,
            rows // len(target_N),
            COLUMNS=columns,
            GRADIENT=gradient,
            ROWS=launch.rows,
            LANES=launch.lanes,
            VECTOR=16 // logits_RU.element_size(),
            num_warps=launch.warps,
            enable_fp_fusion=True,  # a product and a sum in one instruction, as by default up to Triton 3.9
        )

    binary = (logits_RU.device, logits_RU.dtype, dtype, columns, gradient)
    with torch.cuda.device_of(logits_RU):
        if binary in _CHECKED or (logits_RU.is_cuda and torch.cuda.is_current_stream_capturing()):
            launched()
            return log_prob_R
        given_rU = logits_RU[:CHECKED_ROWS].to(dtype, copy=True)
        if logits_RU.is_cuda:
            torch.cuda.current_stream().synchronize()  # what has failed before would be taken for this one's failure
        try:
            launched()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no C compiler, a driver that does not load the binary, ...
            raise KernelError(f"{type(error).__name__}: {error}") from error
        if _is_right(given_rU, target_N, log_prob_R, logits_RU if gradient else None):
            _CHECKED.add(binary)
    return log_prob_R


def _is_right(given_rU: Tensor, target_N: Tensor, log_prob_R: Tensor, gradient_RU: Tensor | None) -> bool:
    """Of the first rows (r): not how exact they are, which is for tests, but whether they are what they should be.

    Raises KernelError if not. False if the input is not finite in any of them, which says nothing.
    """
    rows, components, tolerance = len(given_rU), len(log_prob_R) // len(target_N), 0.01
    target_r1 = target_N[: triton.cdiv(rows, components)].repeat_interleave(components)[:rows].unsqueeze(1)
    all_rU = torch.log_softmax(given_rU, 1)
    expected_r, found_r = all_rU.gather(1, target_r1).squeeze(1), log_prob_R[:rows]
    right_r = (found_r - expected_r).abs() <= tolerance * (1 + expected_r.abs())
    if gradient_RU is not None:
        expected_rU = all_rU.exp_().scatter_add_(1, target_r1, torch.full_like(target_r1, -1, dtype=all_rU.dtype))
        right_r &= expected_rU.sub_(gradient_RU[:rows]).abs_().amax(1) <= tolerance
    known_r = expected_r.isfinite()
    wrong_r = known_r & ~right_r
    if bool(wrong_r.any()):
        found, expected = float(found_r[wrong_r][0]), float(expected_r[wrong_r][0])
        raise KernelError(f"a log-probability of {found:g} where PyTorch has {expected:g}, or its gradient is wrong")
    return bool(known_r.any())
