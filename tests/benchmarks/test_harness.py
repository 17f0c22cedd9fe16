"""A candidate in a process of its own that fails, or never ends, is told apart and takes nothing with it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Worker, in_turn
from highrank.errors import UserError


def make_fast() -> Callable[[], int]:
    return os.getpid


def make_broken() -> Callable[[], object]:
    return lambda: os._exit(3)


def make_broken_later() -> Callable[[], object]:
    calls = iter((None, None))
    return lambda: next(calls, 3) and os._exit(3)


def make_endless() -> Callable[[], object]:
    return lambda: time.sleep(600)


def make_never() -> Callable[[], object]:
    time.sleep(600)
    return make_fast()


def make_nothing_here() -> Callable[[], object]:
    raise UserError("penn: not there")


def test_what_a_user_can_mend_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^penn: not there$"):
        Worker(make_nothing_here)()


def test_a_worker_that_fails_takes_no_other_with_it() -> None:
    workers = {
        "fast": Worker(make_fast, within_s=120),
        "broken": Worker(make_broken, within_s=120),
        "broken later": Worker(make_broken_later, within_s=120),
        "endless": Worker(make_endless, within_s=5),
        "never made": Worker(make_never, within_s=1),
    }
    failed: dict[str, str] = {}
    times = in_turn(workers, 3, failed=failed)
    assert {name: len(seconds) for name, seconds in times.items()} == {"fast": 3}
    assert failed == {
        "broken": "WorkerError: its process ended with 3",
        "broken later": "WorkerError: its process ended with 3",
        "endless": "WorkerError: not done after 5 s",
        "never made": "WorkerError: not done after 1 s",
    }
    assert workers["fast"]() not in (None, os.getpid())
    assert workers["fast"].close() > 0


def test_results_go_where_they_are_told(tmp_path: Path) -> None:
    environment = os.environ | {"HIGHRANK_RESULTS": str(tmp_path / "results")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = "from benchmarks.harness import save; save('bench_nothing', {'answer': 42})"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert json.loads((tmp_path / "results" / "bench_nothing.json").read_text())["answer"] == 42


def test_without_git_the_commit_is_what_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    monkeypatch.setenv("HIGHRANK_COMMIT", "abc1234")
    assert harness.code_commit() == "abc1234"
