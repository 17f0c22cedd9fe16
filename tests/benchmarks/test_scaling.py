"""The parts of a step are measured as the workers are: with one thread."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness, scaling


def test_the_parts_are_those_of_a_worker_of_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    def parts(*_: Any) -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return {"micro_batch_s": 3.0, "rest_s": 1.0, "sum_bytes": 8}

    monkeypatch.setattr(scaling, "parts", parts)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["scaling", "--recipe", "penn-small", "--measured-workers", "1"])
    try:
        assert scaling.main() == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]
    found = json.loads((tmp_path / "scaling.cpu.json").read_text(encoding="utf-8"))
    assert found["threads_a_worker"] == found["about"]["device"]["threads"] == 1
    first = found["model"][0]["rows"][0]
    assert first["step_s"] == first["passes"] * 3.0 + 1.0
