"""Triton's kernels compiled without a GPU, and what its compiler and ptxas say of each binary.

A process whose Triton interprets cannot compile: ``reports`` runs a test module that prints them in one of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from highrank.ops import triton

REPOSITORY = Path(__file__).resolve().parent.parent
NO_TRITON = triton.cannot_run(torch.device("cpu"))

interpreted = pytest.mark.skipif(NO_TRITON is not None, reason=f"triton: {NO_TRITON}")
can_compile = pytest.mark.skipif(
    sys.platform != "linux" or NO_TRITON == "triton is not installed", reason="needs Triton's compiler"
)


class Binary(NamedTuple):
    gpu: str
    ttgir: str
    ptx: str
    shared_bytes: int
    registers: int
    spilled_bytes: int


def binary(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    aligned: Iterable[str],
    warps: int,
    capability: int,
) -> Binary:
    """``types``: of the other arguments, in their order; ``aligned``: which of them are multiples of 16."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    divisible = {(list(types).index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, dict(types) | dict.fromkeys(constants, "constexpr"), dict(constants), divisible)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    made = compiler.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        gpu = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)[0]
        ptxas = [get_ptxas(capability).path, "-v", f"--gpu-name={gpu}", file.name, "-o", os.devnull]
        log = subprocess.run(ptxas, check=True, capture_output=True, text=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    assert spilled is not None, log
    assert registers is not None, log
    spilled_bytes = int(spilled[1]) + int(spilled[2])
    return Binary(gpu, made.asm["ttgir"], ptx, made.metadata.shared, int(registers[1]), spilled_bytes)


def reports(module: str, capability: int, cache: Path) -> list[dict[str, Any]]:
    """What ``python -m module CAPABILITY`` prints as JSON, in a process whose Triton compiles."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", module, str(capability)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found
