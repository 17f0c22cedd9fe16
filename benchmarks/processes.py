"""Trainings in processes of their own, and a run that was left alone to hold others against."""

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import highrank.cli.environment  # noqa: F401 - as the command line has it
from benchmarks.same_bits import Comparison, compare, damaged_files
from highrank.cli.main import main as highrank_main
from highrank.runs import RunFolder
from highrank.runs.checkpoint import checkpoint_folders

__all__ = [
    "RECIPE",
    "Done",
    "Setting",
    "command",
    "expect",
    "finish",
    "here",
    "kill",
    "newest_checkpoint",
    "one_line",
    "start",
    "train_arguments",
    "train_command",
    "wait_until",
]

RECIPE = Path(__file__).parent.parent / "tests" / "train" / "tiny.toml"


class Done(NamedTuple):
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "highrank", *map(str, arguments)]


def train_arguments(out: Path, text: Path, *more: str) -> list[str]:
    # Every update is followed by a checkpoint, so that a kill falls into a save as often as not.
    options = ["--data", text, "--out", out, "--checkpoint-minutes", "0", "--device", "cpu"]
    return ["train", *map(str, [RECIPE, *options]), *more]


def train_command(out: Path, text: Path, *more: str) -> list[str]:
    return command(*train_arguments(out, text, *more))


def finish(arguments: list[str], *, preexec_fn: Callable[[], None] | None = None) -> Done:
    """A command in a process of its own, to its end."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, preexec_fn=preexec_fn)
    return Done(done.returncode, done.stdout, done.stderr)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def here(*arguments: str | Path) -> Done:
    """A command in this process: it spares the seconds of loading where the process is not what is tested."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = highrank_main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), errors.getvalue())


def one_line(done: Done, *words: str, codes: tuple[int, ...] = (1,)) -> str:
    """The clear line with which a command gave up."""
    assert done.returncode in codes, f"exit code {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("highrank: "), done.stderr
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"
    return last


def newest_checkpoint(run: Path) -> str:
    return max((path.name for path in (run / "train").glob("checkpoint-*")), default="")


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool], *, every_s: float = 0.005) -> bool:
    """False if the process came to its end before."""
    while not reached():
        if process.poll() is not None:
            return False
        time.sleep(every_s)
    return True


def expect(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """As ``wait_until``, where the process must not come to its end before."""
    if not wait_until(process, reached):
        raise AssertionError(f"the process has ended ({process.returncode}): {process.communicate()[1]}")


def kill(process: subprocess.Popen[str]) -> bool:
    """Was it the kill that ended it?"""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


@dataclass
class Setting:
    """A text, a run on it that was left alone, how long that took, and a folder to work in."""

    text: Path
    reference: Path
    whole_s: float
    folder: Path

    @classmethod
    def make(cls, text: Path, folder: Path) -> "Setting":
        began = time.monotonic()
        done = finish(train_command(folder / "uninterrupted", text))
        assert done.returncode == 0, done.stderr
        assert any(record.get("averaging") for record in RunFolder.open(folder / "uninterrupted").metrics())
        return cls(text, folder / "uninterrupted", time.monotonic() - began, folder)

    def resumed(self, run: Path) -> Comparison:
        """Resume ``run`` to its end, look at every file, compare."""
        done = here(*train_arguments(run, self.text, "--resume"))
        assert done.returncode == 0, done.stderr
        wrong = damaged_files(run)
        assert not wrong, wrong
        return compare(run, self.reference)

    def copy(self, name: str, *, finished: bool) -> Path:
        """The uninterrupted run once more; or as it was when its last checkpoint was not yet there."""
        run = self.folder / name
        shutil.copytree(self.reference, run)
        if not finished:
            shutil.rmtree(checkpoint_folders(run / "train")[0])
            (run / "results.json").unlink()
        return run
