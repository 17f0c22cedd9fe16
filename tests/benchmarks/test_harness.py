"""A candidate in a process of its own that fails, or never ends, is told apart and takes nothing with it."""

import os
import time
from collections.abc import Callable

import pytest

from benchmarks.harness import Worker
from highrank.errors import UserError


def make_fast() -> Callable[[], int]:
    return os.getpid


def make_broken() -> Callable[[], object]:
    return lambda: os._exit(3)


def make_endless() -> Callable[[], object]:
    return lambda: time.sleep(600)


def make_nothing_here() -> Callable[[], object]:
    raise UserError("penn: not there")


def test_what_a_user_can_mend_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^penn: not there$"):
        Worker(make_nothing_here)()


def test_a_first_call_says_why_it_fails() -> None:
    fast = Worker(make_fast)
    assert fast.failure(120) is None
    assert fast() not in (None, os.getpid())
    assert fast.close() > 0
    assert Worker(make_broken).failure(120) == "its process ended with 3"
    assert Worker(make_endless).failure(1) == "not done after 1 s"
