"""The two kernels of a persistent LSTM layer, what they need of a GPU, and their launch.

This module imports triton: take it where kernels run, not where highrank is imported.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "LAUNCHES",
    "Chip",
    "Launch",
    "backward",
    "backward_kernel",
    "chip_of",
    "constants",
    "forward",
    "forward_kernel",
    "launch_for",
    "shared_bytes",
]


class Launch(NamedTuple):
    units: int  # of the layer that a program computes, with four rows of the recurrent weight each
    warps: int  # of a program: each multiplies a slice of the product's inner dimension
    depth: int  # of a warp's slice in one piece
    group: int  # pieces of the gates' gradients on their way at a time: there are four times as many as of states


class Chip(NamedTuple):
    processors: int
    shared_bytes: int  # of one of them, that one program can have


# Tried in this order, until each program has a processor of its own and room there for its part of the weight. The
# fewer units it has the less it must multiply; the more programs, the more read the same numbers and meet.
LAUNCHES = (Launch(8, 8, 32, 8), Launch(16, 8, 32, 8), Launch(16, 8, 32, 4))
INTERPRETED = Launch(8, 2, 16, 3)


@triton.jit
def _arrive(arrived):
    """Say that all that this program has written is written."""
    tl.debug_barrier()  # of every warp: the one thread that adds speaks for all of them
    tl.atomic_add(arrived, 1, sem="release", scope="gpu")


@triton.jit
def _wait(arrived, number):
    """Until so many have arrived, and then see what they have written.

    Needs every program of the grid to be running, which a cooperative launch grants or refuses.
    """
    # The addition of nothing is how to ask for a read that acquires: the compiler makes a plain load of it.
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < number:
        pass
    tl.debug_barrier()  # the one thread that has seen it speaks for all


@triton.jit
def _pieces(
    row_R,
    there_R,
    LENGTH: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    WARPS: tl.constexpr,
    DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Of rows (R) of so many numbers the pieces from FIRST to before LAST: (W, R, D) each, a slice for each warp (W).

    (W, D, R) if TRANSPOSED. All of them are asked for before any of them is used. Beyond LENGTH, and of rows that are
    not there, zeros.
    """
    at_WD = tl.arange(0, WARPS)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
    row = row_R[None, None, :] if TRANSPOSED else row_R[None, :, None]
    there = there_R[None, None, :] if TRANSPOSED else there_R[None, :, None]
    pieces = ()
    for piece in tl.static_range(FIRST, LAST):
        k_WD = piece * WARPS * DEPTH + at_WD
        k = k_WD[:, :, None] if TRANSPOSED else k_WD[:, None, :]
        loaded = tl.load(row + k, mask=there & (k < LENGTH), other=0.0)
        pieces = pieces + (loaded,)  # type: ignore[assignment]  # noqa: RUF005 - which triton does not know
    return pieces


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit(do_not_specialize=["first", "last", "batch"])
def forward_kernel(
    gates_TBG,
    hidden_SBH,
    cell_SBH,
    weight_GH,
    arrived,
    first,
    last,
    batch,
    WIDTH: tl.constexpr,
    BATCH: tl.constexpr,
    UNITS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """See ``forward``. A program has some units (U) and, of the weight, their rows of each gate (R = 4U)."""
    PIECES: tl.constexpr = triton.cdiv(WIDTH, WARPS * DEPTH)
    dtype: tl.constexpr = hidden_SBH.dtype.element_ty
    first_unit = tl.program_id(0) * UNITS
    u_U = first_unit + tl.arange(0, UNITS)
    b_B = tl.arange(0, BATCH)
    at_BU = b_B[:, None] * WIDTH + u_U[None, :]
    gate_BU = b_B[:, None] * (4 * WIDTH) + u_U[None, :]
    there_BU = (b_B[:, None] < batch) & (u_U[None, :] < WIDTH)
    numbers = batch.to(tl.int64) * WIDTH  # of a step

    # The rows of a unit's four gates stand beside one another, so that its sums meet in one thread. They go into the
    # shared memory of the processor, and stay there for the whole sequence.
    r_R = tl.arange(0, 4 * UNITS)
    unit_R = first_unit + r_R // 4
    weight_R = weight_GH + ((r_R % 4) * WIDTH + unit_R) * WIDTH
    weights = _pieces(weight_R, unit_R < WIDTH, WIDTH, 0, PIECES, WARPS, DEPTH, TRANSPOSED=True)

    cell_BU = tl.load(cell_SBH + first * numbers + at_BU, mask=there_BU, other=0.0)
    for t in range(first, last):
        at_gates = gates_TBG + t * numbers * 4 + gate_BU
        from_input_BU = tl.load(at_gates, mask=there_BU, other=0.0).to(tl.float32)
        from_forget_BU = tl.load(at_gates + WIDTH, mask=there_BU, other=0.0).to(tl.float32)
        from_new_BU = tl.load(at_gates + 2 * WIDTH, mask=there_BU, other=0.0).to(tl.float32)
        from_output_BU = tl.load(at_gates + 3 * WIDTH, mask=there_BU, other=0.0).to(tl.float32)

        hidden_B = hidden_SBH + t * numbers + b_B * WIDTH
        before = _pieces(hidden_B, b_B < batch, WIDTH, 0, PIECES, WARPS, DEPTH, TRANSPOSED=False)
        sums_WBR = tl.zeros((WARPS, BATCH, 4 * UNITS), tl.float32)
        for piece in tl.static_range(PIECES):
            sums_WBR = tl.dot(before[piece], weights[piece], sums_WBR, input_precision="ieee")
        even_BU2, odd_BU2 = tl.split(tl.reshape(tl.sum(sums_WBR, 0), (BATCH, UNITS, 2, 2)))
        input_BU, new_BU = tl.split(even_BU2)
        forget_BU, output_BU = tl.split(odd_BU2)
        input_BU = _sigmoid(input_BU + from_input_BU)
        forget_BU = _sigmoid(forget_BU + from_forget_BU)
        new_BU = _tanh(new_BU + from_new_BU)
        output_BU = _sigmoid(output_BU + from_output_BU)

        cell_BU = forget_BU * cell_BU + input_BU * new_BU
        after_BU = (t + 1) * numbers + at_BU
        tl.store(hidden_SBH + after_BU, (output_BU * _tanh(cell_BU)).to(dtype), mask=there_BU)
        if t + 1 < last:
            _arrive(arrived)  # what follows is for the backward pass: nobody waits for it
        tl.store(cell_SBH + after_BU, cell_BU, mask=there_BU)
        tl.store(at_gates, input_BU.to(dtype), mask=there_BU)
        tl.store(at_gates + WIDTH, forget_BU.to(dtype), mask=there_BU)
        tl.store(at_gates + 2 * WIDTH, new_BU.to(dtype), mask=there_BU)
        tl.store(at_gates + 3 * WIDTH, output_BU.to(dtype), mask=there_BU)
        if t + 1 < last:
            _wait(arrived, (t + 1 - first) * tl.num_programs(0))


@triton.jit(do_not_specialize=["first", "last", "steps", "batch"], do_not_specialize_on_alignment=["grad_output_TBH"])
def backward_kernel(
    grad_output_TBH,
    gates_TBG,
    cell_SBH,
    weight_HG,
    grad_gates_TBG,
    grad_cell_BH,
    arrived,
    first,
    last,
    steps,
    batch,
    WIDTH: tl.constexpr,
    BATCH: tl.constexpr,
    UNITS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """See ``backward``. A program has some units (U) and, of the weight, their columns."""
    PIECES: tl.constexpr = triton.cdiv(4 * WIDTH, WARPS * DEPTH)
    dtype: tl.constexpr = grad_gates_TBG.dtype.element_ty
    u_U = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    b_B = tl.arange(0, BATCH)
    at_BU = b_B[:, None] * WIDTH + u_U[None, :]
    gate_BU = b_B[:, None] * (4 * WIDTH) + u_U[None, :]
    there_BU = (b_B[:, None] < batch) & (u_U[None, :] < WIDTH)
    numbers = batch.to(tl.int64) * WIDTH  # of a step

    weight_U = weight_HG + u_U * (4 * WIDTH)
    weights = _pieces(weight_U, u_U < WIDTH, 4 * WIDTH, 0, PIECES, WARPS, DEPTH, TRANSPOSED=True)

    grad_cell_BU = tl.load(grad_cell_BH + at_BU, mask=there_BU, other=0.0)
    for back in range(first, last):
        t = steps - 1 - back
        at_gates = gates_TBG + t * numbers * 4 + gate_BU
        at_grad_gates = grad_gates_TBG + t * numbers * 4 + gate_BU
        input_BU = tl.load(at_gates, mask=there_BU, other=0.0).to(tl.float32)
        forget_BU = tl.load(at_gates + WIDTH, mask=there_BU, other=0.0).to(tl.float32)
        new_BU = tl.load(at_gates + 2 * WIDTH, mask=there_BU, other=0.0).to(tl.float32)
        output_BU = tl.load(at_gates + 3 * WIDTH, mask=there_BU, other=0.0).to(tl.float32)
        before_BU = tl.load(cell_SBH + t * numbers + at_BU, mask=there_BU, other=0.0)
        tanh_BU = _tanh(tl.load(cell_SBH + (t + 1) * numbers + at_BU, mask=there_BU, other=0.0))
        grad_BU = tl.load(grad_output_TBH + t * numbers + at_BU, mask=there_BU, other=0.0).to(tl.float32)

        if back > 0:
            later_B = grad_gates_TBG + (t + 1) * numbers * 4 + b_B * (4 * WIDTH)
            sums_WBU = tl.zeros((WARPS, BATCH, UNITS), tl.float32)
            for group in tl.static_range(0, PIECES, GROUP):
                later = _pieces(
                    later_B,
                    b_B < batch,
                    4 * WIDTH,
                    group,
                    min(group + GROUP, PIECES),
                    WARPS,
                    DEPTH,
                    TRANSPOSED=False,
                )
                for piece in tl.static_range(group, min(group + GROUP, PIECES)):
                    sums_WBU = tl.dot(later[piece - group], weights[piece], sums_WBU, input_precision="ieee")
            grad_BU += tl.sum(sums_WBU, 0)

        grad_cell_BU += grad_BU * output_BU * (1 - tanh_BU * tanh_BU)
        grad_input_BU = grad_cell_BU * new_BU * input_BU * (1 - input_BU)
        grad_forget_BU = grad_cell_BU * before_BU * forget_BU * (1 - forget_BU)
        grad_new_BU = grad_cell_BU * input_BU * (1 - new_BU * new_BU)
        grad_of_output_BU = grad_BU * tanh_BU * output_BU * (1 - output_BU)
        grad_cell_BU *= forget_BU
        tl.store(at_grad_gates, grad_input_BU.to(dtype), mask=there_BU)
        tl.store(at_grad_gates + WIDTH, grad_forget_BU.to(dtype), mask=there_BU)
        tl.store(at_grad_gates + 2 * WIDTH, grad_new_BU.to(dtype), mask=there_BU)
        tl.store(at_grad_gates + 3 * WIDTH, grad_of_output_BU.to(dtype), mask=there_BU)
        if back + 1 < last:
            _arrive(arrived)
            _wait(arrived, (back + 1 - first) * tl.num_programs(0))
    tl.store(grad_cell_BH + at_BU, grad_cell_BU, mask=there_BU)


def _padded(batch: int) -> int:
    """The rows of the products: tensor cores multiply 16 at a time."""
    return max(16, int(triton.next_power_of_2(batch)))


def shared_bytes(width: int, batch: int, dtype: torch.dtype, launch: Launch) -> int:
    """What a program needs at most: its part of the weight, and the pieces of the other factor on their way."""
    depth = launch.warps * launch.depth
    pieces = {"forward": triton.cdiv(width, depth), "backward": triton.cdiv(4 * width, depth)}
    rows = {"forward": 4 * launch.units, "backward": launch.units}
    under_way = {"forward": pieces["forward"], "backward": min(pieces["backward"], launch.group)}
    rows_of_pieces = max(pieces[which] * rows[which] + under_way[which] * _padded(batch) for which in pieces)
    return int(rows_of_pieces) * depth * dtype.itemsize


def launch_for(width: int, batch: int, dtype: torch.dtype, chip: Chip) -> Launch | None:
    """The first launch that the chip can hold; None if there is none."""
    for launch in LAUNCHES:
        programs = triton.cdiv(width, launch.units)
        if programs <= chip.processors and shared_bytes(width, batch, dtype, launch) <= chip.shared_bytes:
            return launch
    return None


@cache
def chip_of(device: torch.device) -> Chip:
    index = torch.cuda.current_device() if device.index is None else device.index
    found = triton.runtime.driver.active.utils.get_device_properties(index)
    return Chip(found["multiprocessor_count"], found["max_shared_mem"])


def forward(gates_TBG: Tensor, hidden_SBH: Tensor, cell_SBH: Tensor, weight_GH: Tensor) -> None:
    """All steps of a layer. S = T + 1: the states before the first step, then those after each.

    gates_TBG: of each gate what comes from the input, biases included; becomes the gates. hidden_SBH and cell_SBH: the
    first of each is given, the others are written. G = 4H, in the order input, forget, cell, output. The cell is
    float32, whatever the dtype of the others.
    """
    steps, batch, _ = gates_TBG.shape
    _launch(forward_kernel, [gates_TBG, hidden_SBH, cell_SBH, weight_GH], steps, [batch], hidden_SBH)


def backward(
    grad_output_TBH: Tensor,
    gates_TBG: Tensor,
    cell_SBH: Tensor,
    weight_HG: Tensor,
    grad_gates_TBG: Tensor,
    grad_cell_BH: Tensor,
) -> None:
    """Through all steps of a layer, the last one first.

    weight_HG: the transposed weight, laid out as such. grad_gates_TBG is written: the gradient of each gate before its
    sigmoid or tanh. grad_cell_BH: of the last cell, becomes that of the first; float32 as the cell.
    """
    steps, batch, _ = gates_TBG.shape
    tensors = [grad_output_TBH, gates_TBG, cell_SBH, weight_HG, grad_gates_TBG, grad_cell_BH]
    _launch(backward_kernel, tensors, steps, [steps, batch], grad_output_TBH)


def _launch(kernel: Any, tensors: list[Tensor], steps: int, sizes: list[int], like_TBH: Tensor) -> None:
    """One launch for all steps, or, where programs run one after the other and cannot meet, one for each."""
    _, batch, width = like_TBH.shape
    interpreted = triton.knobs.runtime.interpret
    launch = INTERPRETED if interpreted else launch_for(width, batch, like_TBH.dtype, chip_of(like_TBH.device))
    assert launch is not None  # ``cannot_run`` was asked
    # A product and a sum in one instruction, as by default up to Triton 3.9.
    options = {} if interpreted else {"launch_cooperative_grid": True, "enable_fp_fusion": True}
    arrived = torch.zeros(1, dtype=torch.int32, device=like_TBH.device)
    with torch.cuda.device_of(like_TBH):
        for first, last in [(step, step + 1) for step in range(steps)] if interpreted else [(0, steps)]:
            kernel[(triton.cdiv(width, launch.units),)](
                *tensors, arrived, first, last, *sizes, **constants(kernel, width, batch, launch), **options
            )


def constants(kernel: Any, width: int, batch: int, launch: Launch) -> dict[str, int]:
    """What a binary of the kernel is compiled for, and its number of warps."""
    values = {
        "WIDTH": width,
        "BATCH": _padded(batch),
        "UNITS": launch.units,
        "WARPS": launch.warps,
        "DEPTH": launch.depth,
        "GROUP": launch.group,
    }
    return {name: value for name, value in values.items() if name in kernel.arg_names} | {"num_warps": launch.warps}
