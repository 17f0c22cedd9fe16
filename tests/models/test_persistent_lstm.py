"""The persistent LSTM layer: in Triton's interpreter against PyTorch's, and compiled ahead of time for two GPUs.

In the interpreter programs run one after the other, with a launch for each step. How they meet in one launch is shown
by a process for each program; of their meeting on a GPU the binaries say that the operations it rests on are there.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from highrank.models import AWDLSTM, seed_dropouts
from highrank.models.awd_lstm import DropConnectLSTM
from highrank.models.persistent_lstm import cannot_run, persistent_lstm
from highrank.ops import triton
from tests.ahead_of_time import binary, can_compile, interpreted, reports

CPU = torch.device("cpu")

# (steps, batch, in, out): one unit more than a program has, or fewer; two tiles of columns; several pieces of a slice.
SIZES = [(1, 1, 3, 5), (5, 3, 7, 20), (4, 17, 8, 33), (3, 12, 24, 72)]

# The widths of the recipes, with the batch of a pass of each; penn-small's; a batch of two tiles.
LAYERS = [(960, 12), (620, 12), (1150, 5), (650, 5), (320, 10), (960, 20)]
H100, A100 = (132, 232_448), (108, 166_912)  # processors, and bytes of shared memory that a program can have


def inputs_of(steps: int, batch: int, wide_in: int, width: int) -> list[Tensor]:
    torch.manual_seed(width)
    sizes = [(steps, batch, wide_in), (1, batch, width), (1, batch, width)]
    sizes_of_weights = [(4 * width, wide_in), (4 * width, width), (4 * width,), (4 * width,)]
    weights = [(torch.rand(size, dtype=torch.float64) * 2 - 1) / width**0.5 for size in sizes_of_weights]
    return [*(torch.randn(size, dtype=torch.float64) for size in sizes), *weights]


def ours(sequence: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return persistent_lstm(sequence, (hidden, cell), *weights)


def torchs(sequence: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.lstm(sequence, (hidden, cell), list(weights), True, 1, 0.0, True, False, False))


def solve(
    layer: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], dtype: torch.dtype, *, long_cell: bool = False
) -> list[Tensor]:
    """Outputs, state and every gradient, in float64. ``long_cell``: the cell in float32 at least."""
    leaves = [x.to(dtype) for x in inputs]
    if long_cell:
        leaves[2] = inputs[2].to(torch.promote_types(dtype, torch.float32))
    leaves = [x.clone().requires_grad_() for x in leaves]
    found = layer(*leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in found]
    return [x.detach().double() for x in (*found, *torch.autograd.grad(found, leaves, upstream))]


def errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [((x - exact).norm() / exact.norm()).item() for x, exact in zip(found, truth, strict=True)]


@interpreted
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_every_gradient_are_those_of_pytorch(size: tuple[int, ...]) -> None:
    inputs = inputs_of(*size)
    truth = solve(torchs, inputs, torch.float64)
    assert max(errors(solve(ours, inputs, torch.float32), truth)) < 1e-6


@interpreted
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_half_precision_is_no_worse_than_naive(size: tuple[int, ...]) -> None:
    inputs = inputs_of(*size)
    truth = solve(torchs, inputs, torch.float64)
    naive = errors(solve(torchs, inputs, torch.float16), truth)
    for error, naive_error in zip(
        errors(solve(ours, inputs, torch.float16, long_cell=True), truth), naive, strict=True
    ):
        assert error < 1.5 * naive_error + 1e-4


@interpreted
def test_two_runs_have_the_same_bits() -> None:
    inputs = inputs_of(4, 3, 7, 20)
    for one, other in zip(*(solve(ours, inputs, torch.float16, long_cell=True) for _ in range(2)), strict=True):
        assert one.equal(other)


@interpreted
def test_backward_twice_and_a_state_of_no_further_use() -> None:
    leaves = [x.float().requires_grad_() for x in inputs_of(3, 2, 7, 20)]
    outputs, *_ = ours(*leaves)
    expected = torch.autograd.grad(torchs(*leaves)[0].pow(2).sum(), leaves)
    for _ in range(2):
        found = torch.autograd.grad(outputs.pow(2).sum(), leaves, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("wanted", range(7))
def test_each_gradient_alone(wanted: int) -> None:
    inputs = [x.float() for x in inputs_of(3, 2, 7, 20)]
    inputs[wanted].requires_grad_()
    (found,) = torch.autograd.grad(ours(*inputs)[0].sum(), [inputs[wanted]])
    (expected,) = torch.autograd.grad(torchs(*inputs)[0].sum(), [inputs[wanted]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@interpreted
def test_nothing_need_be_contiguous() -> None:
    """Neither the inputs, nor the gradients of what comes of them."""
    inputs = [x.float().requires_grad_() for x in inputs_of(3, 2, 7, 20)]
    scattered = [x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2] for x in inputs]
    assert not any(x.is_contiguous() for x in scattered if min(x.shape) > 1)
    found, expected = ours(*scattered), torchs(*inputs)
    torch.testing.assert_close(found, expected)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.mT.shape, generator=generator).mT for x in found]
    gradients = (torch.autograd.grad(outputs, inputs, upstream) for outputs in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@interpreted
def test_under_autocast_a_layer_has_the_same_dropped_weights_and_carries_its_state() -> None:
    torch.manual_seed(0)
    plain, persistent = DropConnectLSTM(7, 20, 0.5), DropConnectLSTM(7, 20, 0.5, persistent=True)
    persistent.load_state_dict(plain.state_dict())
    sequence, state = torch.randn(6, 3, 7), (torch.randn(1, 3, 20), torch.randn(1, 3, 20))

    def run(layer: DropConnectLSTM, *, autocast: bool) -> list[Tensor]:
        seed_dropouts(layer, 1, 2, 3)
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            output, (hidden, cell) = layer(sequence, state)
        output.pow(2).sum().backward()
        return [output, hidden, cell, *(parameter.grad for parameter in layer.parameters())]

    exact, rounded = run(plain, autocast=False), run(persistent, autocast=True)
    assert {x.dtype for x in rounded} == {torch.float32}
    assert 0 < max(errors(rounded, exact)) < 2e-3
    torch.testing.assert_close(run(persistent.eval(), autocast=False)[0], run(plain.eval(), autocast=False)[0])


@interpreted
def test_a_whole_backbone() -> None:
    torch.manual_seed(0)
    sizes = {"embedding_features": 6, "hidden_features": 20, "out_features": 12, "num_layers": 2}
    backbone = AWDLSTM(17, **sizes, weight_dropout=0.5, hidden_dropout=0.2, persistent=True)
    tokens, found = torch.randint(17, (5, 3)), []
    for autocast in (False, True):
        seed_dropouts(backbone, 1, 2, 3)
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            found.append([backbone(tokens, backbone.initial_state(3)).raw])
    assert 0 < max(errors(found[1], found[0])) < 2e-3


# Programs that meet -------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A kernel, its tensors, and how many columns and units."""

    kernel: str
    tensors: list[Tensor]
    sizes: list[int]
    arrived: Tensor


def run_program(index: int, programs: int, jobs: list[Job], steps: int, batch: int, width: int) -> None:
    """In a process of its own: one program of the grid, from the first step to the last."""
    from triton.runtime.interpreter import interpreter_builder

    from highrank.models import persistent_lstm_kernels as kernels

    set_grid_dim, set_grid_idx = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    interpreter_builder.set_grid_dim = lambda x, y, z: set_grid_dim(programs, y, z)
    interpreter_builder.set_grid_idx = lambda x, y, z: set_grid_idx(index, y, z)
    for job in jobs:
        kernel = getattr(kernels, job.kernel)
        constants = kernels.constants(kernel, width, batch, kernels.INTERPRETED)
        kernel[(1,)](*job.tensors, job.arrived, 0, steps, *job.sizes, **constants)


@interpreted
def test_programs_that_run_at_once_meet_after_every_step() -> None:
    """As on a GPU: one launch, in which each program waits for what the others compute."""
    steps, batch, width = 12, 3, 20
    leaves = [x.float().requires_grad_() for x in inputs_of(steps, batch, 7, width)]
    sequence, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh = leaves
    expected = torchs(*leaves)[0]
    upstream = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, [cell, bias_ih], upstream)

    with torch.no_grad():
        gates = sequence @ weight_ih.T + bias_ih + bias_hh
        hidden, cell = (torch.cat([x, x.new_full((steps, batch, width), torch.nan)]) for x in (hidden, cell))
        grad_gates, grad_cell = torch.full_like(gates, torch.nan), torch.zeros(batch, width)
        weight_HG = weight_hh.T.contiguous()
    of_backward = [upstream, gates, cell, weight_HG, grad_gates, grad_cell]
    jobs = [
        Job("forward_kernel", [gates, hidden, cell, weight_hh.detach()], [batch], torch.zeros(1, dtype=torch.int32)),
        Job("backward_kernel", of_backward, [steps, batch], torch.zeros(1, dtype=torch.int32)),
    ]
    for job in jobs:
        for tensor in (*job.tensors, job.arrived):
            tensor.share_memory_()
    programs = 3  # of 8 units each
    arguments = (programs, jobs, steps, batch, width)
    running = torch.multiprocessing.spawn(run_program, arguments, nprocs=programs, join=False)
    try:
        deadline = time.monotonic() + 300
        while not running.join(1):
            assert time.monotonic() < deadline, "they wait for one another"
    finally:
        for process in running.processes:
            process.kill()
    assert [job.arrived.item() for job in jobs] == [programs * (steps - 1)] * 2
    torch.testing.assert_close(hidden[1:], expected, rtol=1e-5, atol=1e-6)
    found = (grad_cell.unsqueeze(0), grad_gates.sum((0, 1)))
    torch.testing.assert_close(found, expected_gradients, rtol=1e-5, atol=1e-6)


# Ahead of time --------------------------------------------------------------------------------------------------------


def compile_all(capability: int) -> list[dict[str, object]]:
    """Of every binary that the recipes' layers ask for, on the largest GPU of that capability."""
    from highrank.models import persistent_lstm_kernels as kernels

    chip = kernels.Chip(*(A100 if capability == 80 else H100))
    floats = ["grad_output_TBH", "gates_TBG", "hidden_SBH", "weight_GH", "weight_HG", "grad_gates_TBG"]
    types = dict.fromkeys(floats, "*bf16") | {"cell_SBH": "*fp32", "grad_cell_BH": "*fp32", "arrived": "*i32"}
    found: list[dict[str, object]] = []
    for width, batch in LAYERS:
        launch = kernels.launch_for(width, batch, torch.bfloat16, chip)
        for kernel in (kernels.forward_kernel, kernels.backward_kernel) if launch is not None else ():
            constants = kernels.constants(kernel, width, batch, launch)
            warps = constants.pop("num_warps")
            arguments = {name: types.get(name, "i32") for name in kernel.arg_names if name not in constants}
            made = binary(
                kernel,
                arguments,
                constants,
                aligned=[name for name in arguments if name in types and name != "grad_output_TBH"],
                warps=warps,
                capability=capability,
            )
            before_the_steps = made.ttgir.partition("scf.for")[0]
            found.append(
                {
                    "kernel": f"{made.gpu} {kernel.fn.__name__} {width} units, batch {batch}",
                    "launch": list(launch),
                    "registers": made.registers,
                    "spilled_bytes": made.spilled_bytes,
                    "shared_bytes": made.shared_bytes,
                    "foreseen_bytes": kernels.shared_bytes(width, batch, torch.bfloat16, launch),
                    "products": made.ttgir.count("tt.dot"),
                    "kept_for_all_steps": before_the_steps.count("ttg.local_alloc"),
                    "releases": len(re.findall(r"(?:atom|red)\.global\.gpu\.release\.add", made.ptx)),
                    "acquires": made.ptx.count("ld.global.gpu.acquire"),
                }
            )
    return found


@can_compile
@pytest.mark.parametrize(
    ("capability", "layers"), [(80, 4), (90, 6)]
)  # an A100 has no room for 1,150 units, nor 20 columns
def test_every_binary_compiles_ahead_of_time_and_spills_nothing(capability: int, layers: int, tmp_path: Path) -> None:
    found = reports("tests.models.test_persistent_lstm", capability, tmp_path)
    for report in found:
        print(*report.values())
    assert len(found) == 2 * layers
    for report in found:
        assert report["spilled_bytes"] == 0, report
        assert report["shared_bytes"] <= report["foreseen_bytes"], report
        # Every piece of the weight is put into shared memory before the first step.
        assert report["kept_for_all_steps"] == report["products"] > 0, report
        assert (report["releases"], report["acquires"]) == (1, 1), report


# Where it cannot run --------------------------------------------------------------------------------------------------


@interpreted
def test_the_interpreter_has_no_products_of_bfloat16() -> None:
    assert cannot_run(CPU, torch.float16, 12, 960) is None
    assert "bfloat16" in (cannot_run(CPU, torch.bfloat16, 12, 960) or "")


@interpreted
@pytest.mark.parametrize(
    ("dtype", "batch", "width", "chip", "reason"),
    [
        (torch.bfloat16, 12, 960, H100, None),
        (torch.float16, 5, 1150, H100, None),
        (torch.bfloat16, 12, 960, A100, None),
        (torch.float32, 12, 960, H100, "half precision, not in torch.float32"),
        (torch.bfloat16, 12, 5000, H100, "a layer of 5000 units and a batch of 12 do not fit into the 132 processors"),
        (torch.bfloat16, 200, 960, H100, "a batch of 200 do not fit"),
    ],
)
def test_a_layer_must_fit_into_the_gpu(
    dtype: torch.dtype,
    batch: int,
    width: int,
    chip: tuple[int, int],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from highrank.models import persistent_lstm_kernels as kernels

    monkeypatch.setattr(triton, "cannot_run", lambda device: None)
    monkeypatch.setattr(kernels, "chip_of", lambda device: kernels.Chip(*chip))
    found = cannot_run(torch.device("cuda:0"), dtype, batch, width)
    assert found is None if reason is None else reason in (found or "")


if __name__ == "__main__":
    print(json.dumps(compile_all(int(sys.argv[1]))))
