"""A run that the tests of commands share, and a copy for those that change it."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.processes import RECIPE, command, finish


@pytest.fixture(scope="session")
def trained(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run: trained, fine-tuned, dynamically evaluated."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = finish(command("run", RECIPE, "--data", small_text, "--out", out, "--json", "--device", "cpu"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["stage"] for row in result["stages"]] == ["trained", "fine-tuned", "dynamic evaluation"]
    assert all(row["test_perplexity"] > 1 and row["valid_perplexity"] > 1 for row in result["stages"])
    assert result["sample"].strip()
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    return shutil.copytree(trained, tmp_path / "run")
