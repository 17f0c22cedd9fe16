"""Marks that run a test for every implementation of the mixture's loss; the size of its blocks, and its settings."""

from typing import Any

import pytest
import torch

from highrank.functional import LossOptions
from highrank.ops import IMPLEMENTATIONS, Settings, operator, triton
from highrank.ops.walk import round_up
from tests.parity import REDUCTIONS, Problem

NO_TRITON = triton.cannot_run(torch.device("cpu"))
NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "triton" and NO_TRITON is not None, reason=f"triton: {NO_TRITON}")
    )
    for name in IMPLEMENTATIONS
]
every_implementation = pytest.mark.parametrize("implementation", NAMES)
every_fused = pytest.mark.parametrize("implementation", NAMES[1:])
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def block_of(tokens: int, problem: Problem) -> LossOptions:
    """A block that holds exactly so many tokens on the CPU, where rows are a multiple of 32 bytes long."""
    row_bytes = round_up(len(problem.weight) * max(4, problem.context.element_size()), 32)
    return LossOptions(block_bytes=tokens * problem.context.shape[-2] * row_bytes)


def recorded_settings(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Grows by the settings of every walk of the chunked loss from now on."""
    seen: list[Settings] = []
    walk = operator.WALKS["chunked"]

    def recording(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return walk(*arguments)

    monkeypatch.setitem(operator.WALKS, "chunked", recording)
    return seen
