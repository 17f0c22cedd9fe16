"""No file that is read runs code, hangs, eats memory or ends in a traceback; the harness that says so finds faults."""

import contextlib
import os
import pickle
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.fuzz_readers import Outcome, fuzz
from benchmarks.fuzzing.damage import written
from benchmarks.fuzzing.pickles import payloads
from benchmarks.fuzzing.target import Damaged, Target
from highrank.errors import UserError

READERS = 19
FAULTS = 10


def crashes(outcomes: list[Outcome]) -> str:
    return "\n\n".join(
        f"{outcome.target} #{outcome.number}: {outcome.what}\n{outcome.detail}"
        for outcome in outcomes
        if outcome.how == "crash"
    )


def test_some_damaged_files() -> None:
    outcomes = list(fuzz(250, seed=11))
    assert crashes(outcomes) == ""
    assert len(outcomes) == 250
    assert len({outcome.target for outcome in outcomes}) == READERS
    assert {outcome.how for outcome in outcomes} == {"same", "other", "rebuilt", "refused"}


@pytest.mark.slow
def test_many_damaged_files() -> None:
    outcomes = list(fuzz(5000, seed=int(time.time()) // 86_400))  # every day others
    assert crashes(outcomes) == ""
    assert len(outcomes) == 5000


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "os.mkdir, protocol 0", "by a global's name"])
def test_the_payloads_are_live(tmp_path: Path, name: str) -> None:
    """Believed, they do what the readers must not let them do."""
    pickle.loads(payloads(tmp_path / "marker")[name])
    assert (tmp_path / "marker").exists()


def broken_readers(work: Path) -> dict[str, Target]:
    """Each has one of the faults that the harness is there to find; the last has none."""
    good = work / "good"
    good.mkdir()
    (good / "file").write_bytes(b"good")

    def refuse(message: str) -> None:
        error = UserError("")
        error.args = (message,)  # past the care that a UserError takes of its message
        raise error

    reads: dict[str, Callable[[Path], object]] = {
        "believes pickles": lambda path: pickle.loads(path.read_bytes()),
        "another exception": lambda path: {}["missing"],
        "other content": lambda path: path.read_bytes(),
        "much memory": lambda path: len(bytearray(os.urandom(1) * (100 << 20))),  # and the bytes it is made of
        "hangs": lambda path: time.sleep(60),
        "dies": lambda path: os._exit(3),
        "several lines": lambda path: refuse("one\ntwo"),
        "control characters": lambda path: refuse("\x1b[31m"),
        "a long message": lambda path: refuse("x" * 5000),
        "no fault": lambda path: refuse("one line"),
    }
    damage = written("damage", payloads(work / "marker")["os.system"])
    return {
        name: Target(
            name,
            good,
            (),
            lambda copy, notice, read=read: read(copy / "file"),  # type: ignore[misc]
            accepted=(b"good", None, 0, 100 << 20),
            extra=((Damaged("file", "none", guarded=True), damage),),
        )
        for name, read in reads.items()
    }


def test_the_harness_finds_faults() -> None:
    with contextlib.closing(fuzz(2 * FAULTS, make=broken_readers, limit_s=2)) as outcomes:
        found = {each.target: f"{each.how}: {each.detail}" for each in islice(outcomes, FAULTS)}
    assert len(found) == FAULTS
    for name, message in {
        "believes pickles": "crash: code of the file was run",
        "another exception": "KeyError: 'missing'",
        "other content": "crash: wrong content was accepted",
        "much memory": "crash: took 200 MiB",
        "hangs": "crash: hangs: no answer after 2 s",
        "dies": "crash: the process died (exit code 3)",
        "several lines": "crash: a message of several lines",
        "control characters": "crash: a message with control characters",
        "a long message": "crash: a message of 5000 characters",
        "no fault": "refused: one line",
    }.items():
        assert message in found[name], f"{name}: {found[name]}"
