"""What the command line says to the libraries beneath PyTorch, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_waiting_threads import busy_programs
from highrank.cli.environment import BESIDE_OTHERS, others_compute

PROGRAM = """
import os, highrank.cli.environment
print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))
"""


def said(**given: str) -> str:
    environment = {name: os.environ[name] for name in os.environ.keys() - BESIDE_OTHERS.keys()} | given
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what runs")
def test_threads_sleep_beside_busy_programs_unless_they_are_told_how_to_wait() -> None:
    with busy_programs(len(os.sched_getaffinity(0)) + 1):
        assert said() == "PASSIVE 1000"
        assert said(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE None"
        assert said(GOMP_SPINCOUNT="7") == "None 7"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what runs")
@pytest.mark.parametrize(
    ("runnable", "threads", "expected"),
    [("1", "", False), ("2", "", True), ("2", "all but one", False), ("3", "all but one", True), ("what", "", False)],
)
def test_what_counts_as_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runnable: str, threads: str, expected: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3" if threads else "")
    loadavg = tmp_path / "loadavg"
    loadavg.write_text(f"0.50 0.40 0.30 {runnable}/123 4567\n")
    assert others_compute(loadavg) is expected
    assert others_compute(tmp_path / "absent") is False
