"""Triton's kernel by itself: in the interpreter against plain PyTorch, and compiled ahead of time for two GPUs.

The loss that it is a part of is held to the parity protocol in the other files, in the interpreter too.
"""

import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from highrank.ops import Settings, choose, triton
from highrank.ops.operator import fused_loss
from tests.ahead_of_time import NO_TRITON, binary, can_compile, interpreted, reports
from tests.parity import Problem, make_problem

CPU = torch.device("cpu")

# The sizes of Penn Treebank, WikiText-2 and a large model, and one of each other entry of the launch table.
COLUMNS = (208, 10_000, 33_280, 128_256)
DTYPES = {"bf16": "fp32", "fp16": "fp32", "fp32": "fp32", "fp64": "fp64"}  # and what each is summed in
ITEM = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


def compile_all(capability: int) -> list[dict[str, object]]:
    """Of every binary that a launch can ask for."""
    from highrank.ops.triton_kernels import LAUNCHES, target_log_prob_kernel

    found: list[dict[str, object]] = []
    for dtype, sums in DTYPES.items():
        for columns in COLUMNS:
            launch = next(launch for launch in LAUNCHES if columns <= launch.columns)
            for gradient in (False, True):
                constants = {
                    "COLUMNS": columns,
                    "GRADIENT": gradient,
                    "ROWS": launch.rows,
                    "LANES": launch.lanes,
                    "VECTOR": 16 // ITEM[dtype],
                }
                types = {"logits_RU": f"*{dtype}", "target_N": "*i64", "log_prob_R": f"*{sums}"}
                made = binary(
                    target_log_prob_kernel,
                    types | {"num_rows": "i32", "components": "i32"},
                    constants,
                    aligned=("logits_RU", "log_prob_R"),
                    warps=launch.warps,
                    capability=capability,
                )
                found.append(
                    {
                        "kernel": f"{made.gpu} {dtype} {columns} columns{' gradient' if gradient else ''}",
                        "registers": made.registers,
                        "spilled_bytes": made.spilled_bytes,
                        "vector_reads": len(re.findall(r"ld\.global\.v\d", made.ptx)),
                        "vector_writes": len(re.findall(r"st\.global\.v\d", made.ptx)),
                    }
                )
    return found


@can_compile
@pytest.mark.parametrize("capability", [80, 90])
def test_every_binary_compiles_ahead_of_time_and_spills_nothing(capability: int, tmp_path: Path) -> None:
    found = reports("tests.ops.test_triton", capability, tmp_path)
    assert len(found) == len(DTYPES) * len(COLUMNS) * 2
    for report in found:
        print(*report.values())
        assert report["spilled_bytes"] == 0, report
        # 16 bytes at a time: a mask that the compiler cannot see through would make it one number at a time.
        assert report["vector_reads"] > 0, report
        assert (report["vector_writes"] > 0) == ("gradient" in report["kernel"]), report


def rows_of_logits(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Small ones, and rows that only a careful sum survives."""
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    logits[1] *= 1e4
    logits[2, : columns // 2] = -math.inf
    logits[3, 1:] = -math.inf
    logits[4, 5] = math.nan
    logits[5, 7] = math.inf
    logits[6] = -math.inf
    return logits.to(dtype)


@interpreted
@pytest.mark.parametrize("entry", [0, 1, 2, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_kernel_is_log_softmax_with_every_launch(
    entry: int | None, dtype: torch.dtype, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from highrank.ops import triton_kernels

    launch = triton_kernels.INTERPRETED if entry is None else triton_kernels.LAUNCHES[entry]
    monkeypatch.setattr(triton_kernels, "INTERPRETED", launch)
    columns = 2 * launch.lanes * 16 // dtype.itemsize + 16  # two tiles and a little
    logits = rows_of_logits(8, columns, dtype)
    target = torch.tensor([0, 0, columns - 1, 5])  # of two rows each
    target_R1 = target.repeat_interleave(2).unsqueeze(1)
    sums = torch.promote_types(dtype, torch.float32)
    expected = torch.log_softmax(logits.double(), 1)
    after = expected.exp().scatter_add(1, target_R1, torch.full((8, 1), -1.0, dtype=torch.float64))

    given = logits.clone()
    log_prob = triton_kernels.target_log_prob(logits, target, sums, gradient)
    assert log_prob.dtype == sums
    eps = torch.finfo(sums).eps
    torch.testing.assert_close(
        log_prob.double(), expected.gather(1, target_R1).squeeze(1), rtol=4 * eps, atol=40 * eps, equal_nan=True
    )
    if gradient:
        rounding = torch.finfo(dtype).eps  # the interpreter cuts off
        torch.testing.assert_close(logits.double(), after, rtol=rounding, atol=rounding / 8, equal_nan=True)
    else:
        torch.testing.assert_close(logits, given, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("features", "classes", "grown"),
    [
        (280, 10_000, {True: (10_000, 288), False: (10_000, 280)}),
        (300, 33_278, {True: (33_280, 304), False: (33_280, 304)}),
        (768, 50_257, {True: (50_272, 776), False: (50_272, 776)}),
        (4096, 128_256, {True: (128_256, 4104), False: (128_256, 4096)}),
    ],
)
def test_sizes_are_made_round_inside(
    features: int, classes: int, grown: dict[bool, tuple[int, int]], bias: bool
) -> None:
    weight = torch.empty(classes, features, dtype=torch.bfloat16, device="meta")
    ours = triton._grown(weight, torch.empty(classes, dtype=torch.bfloat16, device="meta") if bias else None)
    assert ours.shape == grown[bias]
    assert (ours is weight) == (ours.shape == weight.shape)  # copied only where it must be


@interpreted
def test_two_runs_have_the_same_bits() -> None:
    found = []
    for _ in range(2):
        problem = make_problem(20, dtype=torch.float32)
        problem.weight.requires_grad_()
        problem.loss(implementation="triton").backward()
        found.append(problem.weight.grad)
    assert found[0].equal(found[1])


# Where it cannot run --------------------------------------------------------------------------------------------------


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "INSTALLED", False)
    with pytest.raises(ValueError, match="implementation: 'triton' cannot run: triton is not installed"):
        make_problem(4).loss(implementation="triton")


@pytest.mark.skipif(NO_TRITON == "triton is not installed", reason="needs triton")
def test_tensors_on_a_cpu_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"'triton' cannot run: a CPU has Triton's interpreter only"):
        make_problem(4).loss(implementation="triton")


@pytest.mark.skipif(NO_TRITON == "triton is not installed", reason="needs triton")
@pytest.mark.parametrize(
    ("device", "interpret", "capability", "reason"),
    [
        ("mps", "0", (9, 0), "needs an NVIDIA GPU, not mps"),
        ("cuda:0", "1", (9, 0), "TRITON_INTERPRET is set"),
        ("cuda:0", "0", (7, 5), r"needs a GPU of capability 8\.0 or more, cuda:0 has \(7, 5\)"),
        ("cuda:0", "0", (8, 0), None),
        ("cuda:0", "0", (9, 0), None),
    ],
)
def test_a_gpu_must_be_of_the_right_kind(
    device: str, interpret: str, capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    answer = triton.cannot_run(torch.device(device))
    assert answer is None if reason is None else re.search(reason, answer or "")
    # Still by that name: whether the kernels work is only known when they have been tried.
    assert choose("auto", torch.device(device)) == ("auto" if reason is None else "chunked")


# Where it fails -------------------------------------------------------------------------------------------------------


class Misled:
    """The kernel, whose results somebody changes afterwards."""

    def __init__(self, kernel: Any, change: Callable[[Tensor, Tensor], object]) -> None:
        self.kernel, self.change = kernel, change

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(logits: Tensor, target: Tensor, log_prob: Tensor, *others: Any, **constants: Any) -> None:
            self.kernel[grid](logits, target, log_prob, *others, **constants)
            self.change(logits, log_prob)

        return launch


WRONG = {
    "one log-probability": lambda logits, log_prob: log_prob[3].add_(0.5),
    "log-probabilities that are no numbers": lambda logits, log_prob: log_prob.fill_(math.nan),
    "a gradient": lambda logits, log_prob: logits[2, 7].add_(0.5),
    "gradients that are no numbers": lambda logits, log_prob: logits.fill_(math.nan),
}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process had just begun."""
    from highrank.ops import table, triton_kernels

    monkeypatch.setattr(table, "_GIVEN_UP", set())
    monkeypatch.setattr(triton_kernels, "_CHECKED", set())


@interpreted
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("what", WRONG)
def test_a_binary_that_gives_wrong_numbers_is_found_at_its_first_launch(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from highrank.ops import triton_kernels

    problem = make_problem(5, components=3, dtype=torch.float32)
    problem.weight.requires_grad_()
    right = triton_kernels.target_log_prob_kernel
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", Misled(right, WRONG[what]))
    with pytest.raises(triton.KernelError, match=r"log-probability of .* where PyTorch has .*gradient is wrong"):
        problem.loss(implementation="triton")
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", right)
    problem.loss(implementation="triton").backward()


@interpreted
@pytest.mark.usefixtures("fresh")
def test_a_launch_of_which_nothing_can_be_said_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from highrank.ops import triton_kernels

    problem = make_problem(5, components=3, dtype=torch.float32)
    nan = replace(problem, context=problem.context * math.nan)
    assert nan.loss(implementation="triton").isnan()
    right = triton_kernels.target_log_prob_kernel
    wrong = Misled(right, WRONG["one log-probability"])
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", wrong)
    with pytest.raises(triton.KernelError):
        problem.loss(implementation="triton")
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", right)
    expected = problem.loss(implementation="triton")
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", wrong)
    assert problem.loss(implementation="triton") != expected  # one that has been right is not asked again


class Fails:
    """A kernel that cannot be launched."""

    def __init__(self, error: Exception) -> None:
        self.error, self.launches = error, 0

    def __getitem__(self, grid: tuple[int]) -> Any:
        self.launches += 1
        raise self.error


def fused(problem: Problem, implementation: str) -> Tensor:
    """The gradient of the weight. On a CPU ``auto`` never comes as far as the kernels by itself."""
    problem.weight.grad = None
    problem.weight.requires_grad_()
    arguments = (problem.context, problem.prior_logits, problem.weight, problem.bias, problem.target)
    settings = Settings(2**20, torch.float32, 0.0)
    fused_loss(*arguments, -100, settings, True, implementation=implementation)[0].backward()
    assert problem.weight.grad is not None
    return problem.weight.grad


@interpreted
@pytest.mark.usefixtures("fresh")
def test_where_the_kernels_fail_auto_takes_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    from highrank.ops import triton_kernels

    problem, fails = (
        make_problem(5, components=3, dtype=torch.float32),
        Fails(RuntimeError("Failed to find C compiler")),
    )
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", fails)
    with pytest.raises(triton.KernelError, match="RuntimeError: Failed to find C compiler"):
        fused(problem, "triton")
    assert fails.launches == 1
    with pytest.warns(RuntimeWarning, match=r"fail on cpu, plain PyTorch .* RuntimeError: Failed to find C compiler"):
        assert fused(problem, "auto").equal(fused(problem, "chunked"))
    with warnings.catch_warnings(action="error"):
        assert fused(problem, "auto").equal(fused(problem, "chunked"))  # it has given up, and says so once
    assert fails.launches == 2


@interpreted
@pytest.mark.usefixtures("fresh")
def test_kernels_that_cannot_be_loaded_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(5, components=3, dtype=torch.float32)
    monkeypatch.setitem(sys.modules, "highrank.ops.triton_kernels", None)
    with pytest.warns(RuntimeWarning, match="fail on cpu, plain PyTorch takes their place .* ModuleNotFoundError: "):
        fused(problem, "auto")


@interpreted
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("all of it"), RuntimeError("device-side assert triggered")])
def test_what_is_not_the_kernels_fault_is_no_reason_to_give_up(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from highrank.ops import triton_kernels

    def fails(*arguments: Any) -> Any:
        raise error

    problem = make_problem(5, components=3, dtype=torch.float32)
    where = [(triton, "_grown", fails)]
    if isinstance(error, torch.OutOfMemoryError):
        where.append((triton_kernels, "target_log_prob_kernel", Fails(error)))
    for module, name, instead in where:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, instead)
            with pytest.raises(type(error), match=str(error)):
                fused(problem, "auto")
    launches = recorded_launches(monkeypatch)
    fused(problem, "auto")
    assert launches


def recorded_launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from highrank.ops import triton_kernels

    seen: list[int] = []
    kernel = Misled(triton_kernels.target_log_prob_kernel, lambda *_: seen.append(1))
    monkeypatch.setattr(triton_kernels, "target_log_prob_kernel", kernel)
    return seen


def test_auto_does_not_interpret() -> None:
    assert choose("auto", CPU) == "chunked"


def test_importing_highrank_leaves_triton_alone() -> None:
    code = "import sys, highrank.functional; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    print(json.dumps(compile_all(int(sys.argv[1]))))
