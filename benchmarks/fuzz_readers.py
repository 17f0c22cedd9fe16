"""Does a damaged or malicious file ever do more than cost the user one clear line?

    python -m benchmarks.fuzz_readers [--inputs N] [--seed S] [--minutes M]

Every reader is given good files that were damaged by chance or with malice (see ``benchmarks/fuzzing``).
Each input has to end in one of these ways: the right content; other content, where no checksum tells; a UserError of
one line; a cache made again. All else is a crash: another exception, a hang, wrong content where there is a checksum,
code of the file that runs, more memory than the file's honest size allows.
"""

import argparse
import contextlib
import ctypes
import gc
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from benchmarks.fuzzing.damage import Damage
from benchmarks.fuzzing.target import Damaged, Target
from benchmarks.fuzzing.targets import make_targets
from benchmarks.harness import save
from highrank.errors import UserError

__all__ = ["Outcome", "fuzz", "report"]

MIB = 1 << 20
BOUND_BYTES, BOUND_FACTOR = 64 * MIB, 4  # of memory: so much, and so often the honest size of the files
ADDRESS_SPACE_BYTES = (
    6 << 30
)  # what is mapped beyond the start: a claim of terabytes fails as it does on a full machine
INPUT_LIMIT_S = 20.0
LINE_LIMIT = 2000
# The only message of more than one line: how to get the tensors out of a pickled module.
ADVICE = "torch.save(model.state_dict(), 'state.pt')"


class Outcome(NamedTuple):
    """``how``: same | other | rebuilt | refused | crash. ``detail``: the message, or what went wrong."""

    target: str
    number: int
    what: str
    how: str
    detail: str
    growth_bytes: int
    honest_bytes: int
    elapsed_s: float


def fuzz(
    inputs: int,
    *,
    seed: int = 0,
    minutes: float | None = None,
    only: str = "",
    make: Callable[[Path], dict[str, Target]] = make_targets,
    limit_s: float = INPUT_LIMIT_S,
) -> Iterator[Outcome]:
    """``inputs`` attempts, shared between the readers; with ``minutes`` as many as fit. ``only``: part of a name.

    Up to half of them are a sample of the deliberate damages. The readers are those that ``make`` (picklable) makes in
    another process; ``limit_s`` seconds without an answer are a hang.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with _Readers(seed, make, limit_s) as readers:
        names = [name for name in readers.deliberate if only in name]
        plan = _plan({name: readers.deliberate[name] for name in names}, inputs if deadline is None else None, seed)
        for name, number in plan:
            if deadline is not None and time.monotonic() > deadline:
                return
            yield readers.attempt(name, number)


def _plan(deliberate: dict[str, int], inputs: int | None, seed: int) -> Iterator[tuple[str, int]]:
    """Half of the inputs (at most all) are deliberate, the others drawn; the readers take turns."""
    random = Random(seed)
    listed = [(name, number) for name, count in deliberate.items() for number in range(count)]
    random.shuffle(listed)
    if inputs is not None:
        listed = listed[: inputs // 2]
    yield from listed
    done = len(listed)
    turn = 0
    while inputs is None or done < inputs:
        for name, count in deliberate.items():
            if inputs is not None and done >= inputs:
                return
            yield name, count + turn
            done += 1
        turn += 1


# --- the process that reads ------------------------------------------------------------------------------------------


class _Readers:
    """A process that is given one input after the other, and replaced when it hangs or dies."""

    def __init__(self, seed: int, make: Callable[[Path], dict[str, Target]], limit_s: float) -> None:
        self.seed, self.make, self.limit_s = seed, make, limit_s
        self.deliberate: dict[str, int] = {}

    def __enter__(self) -> "_Readers":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def attempt(self, name: str, number: int) -> Outcome:
        if not self.process.is_alive():
            self._stop()
            self._start()
        self.connection.send((name, number))
        began = time.monotonic()
        try:
            if self.connection.poll(self.limit_s):
                return Outcome(*self.connection.recv())
            problem = f"hangs: no answer after {self.limit_s:.0f} s"
        except EOFError:
            self.process.join()
            problem = f"the process died (exit code {self.process.exitcode})"
        what = (self.work / "what").read_text() if (self.work / "what").exists() else ""
        self.process.kill()
        self.process.join()
        return Outcome(name, number, what, "crash", problem, 0, 0, time.monotonic() - began)

    def _start(self) -> None:
        memory = Path("/dev/shm")  # a disk would make most of the waiting
        self.work = Path(tempfile.mkdtemp(prefix="fuzz-readers-", dir=memory if memory.is_dir() else None))
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.work, self.seed, self.make))
        self.process.start()
        theirs.close()
        self.deliberate = self.connection.recv()

    def _stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.work, ignore_errors=True)


def _serve(connection: Any, work: Path, seed: int, make: Callable[[Path], dict[str, Target]]) -> None:
    torch.set_num_threads(1)
    os.environ["HIGHRANK_CACHE"] = str(work / "no-cache")
    marker = work / "marker"
    targets = make(work)
    listed = {name: list(target.listed(marker)) for name, target in targets.items()}
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    warnings.simplefilter("error")  # a warning is a line too many
    gc.collect()
    gc.freeze()
    connection.send({name: len(damages) for name, damages in listed.items()})
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has gone
        while True:
            name, number = connection.recv()
            random = Random(f"{seed}/{name}/{number}")
            damages = listed[name]
            file, damage = damages[number] if number < len(damages) else targets[name].drawn(random)
            connection.send(tuple(_attempt(targets[name], number, file, damage, work, marker)))


def _attempt(target: Target, number: int, file: Damaged, damage: Damage, work: Path, marker: Path) -> Outcome:
    copy, what = work / "input", f"{file.path}: {damage.what}"
    (work / "what").write_text(what, errors="replace")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(target.good, copy, symlinks=True)
    damage.apply(copy / file.path)
    before, honest = _stored(copy / file.path), _honest_bytes(copy)
    lines: list[str] = []
    began, at_start = time.perf_counter(), _start_measuring()
    try:
        content = target.read(copy, lines.append)
        how, detail = "same", ""
        right = target.accepted if target.expected is None else (target.expected(copy),)
        if content not in right:
            how = "crash" if file.guarded else "other"
            detail = "wrong content was accepted, though a checksum tells" if file.guarded else ""
        elif (copy / file.path).exists() and _stored(copy / file.path) != before:
            how = "rebuilt"
    except UserError as error:
        how, detail = "refused", str(error)
    except BaseException as error:  # PyO3's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        how, detail = "crash", "".join(traceback.format_exception(error))[-1500:]
    elapsed_s, growth = time.perf_counter() - began, _peak_bytes() - at_start
    problems = [problem for line in [*lines, detail] if how != "crash" and (problem := _problem_of(line))]
    if marker.exists() or marker.is_symlink():
        shutil.rmtree(marker, ignore_errors=True)
        marker.unlink(missing_ok=True)
        problems.append("code of the file was run")
    if growth > BOUND_BYTES + BOUND_FACTOR * honest:
        problems.append(f"took {growth / MIB:.0f} MiB for files of {honest / MIB:.3f} MiB")
    if problems:
        how, detail = "crash", "; ".join([*problems, detail[:300]])
    return Outcome(target.name, number, what, how, detail, growth, honest, elapsed_s)


def _problem_of(line: str) -> str | None:
    """What is wrong with a line for the user."""
    first, *more = line.split("\n")
    if more and not (len(more) == 2 and ADVICE in more[-1]):
        return "a message of several lines"
    if len(line) > LINE_LIMIT:
        return f"a message of {len(line)} characters"
    if not all(part.isprintable() for part in (first, *more)):
        return f"a message with control characters: {line!r:.200}"
    return None


def _stored(path: Path) -> object:
    return path.read_bytes() if path.is_file() and path.stat().st_size < 64 * MIB else os.path.lexists(path)


def _honest_bytes(folder: Path) -> int:
    """What the files take on the disk: holes do not count."""
    status = [path.lstat() for path in folder.rglob("*")]
    return sum(min(each.st_size, each.st_blocks * 512) for each in status)


def _start_measuring() -> int:
    """The resident size now, with the peak set back to it. Linux."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_bytes() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


# --- the report ------------------------------------------------------------------------------------------------------


def report(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts by reader and ending, the largest memory and the longest time, and every crash."""
    readers = {}
    for name in dict.fromkeys(outcome.target for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.target == name]
        readers[name] = {
            "inputs": len(mine),
            **Counter(outcome.how for outcome in mine),
            "most_memory_bytes": max(outcome.growth_bytes for outcome in mine),
            "longest_s": round(max(outcome.elapsed_s for outcome in mine), 3),
        }
    crashes = [outcome._asdict() for outcome in outcomes if outcome.how == "crash"]
    return {"inputs": len(outcomes), "crashes": len(crashes), "readers": readers, "each_crash": crashes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="so many inputs (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the damage by chance (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="as many inputs as fit into M minutes, instead of N")
    parser.add_argument(
        "--only", default="", metavar="READER", help="readers with this in their name; nothing is saved"
    )
    arguments = parser.parse_args()
    outcomes = []
    for outcome in fuzz(arguments.inputs, seed=arguments.seed, minutes=arguments.minutes, only=arguments.only):
        outcomes.append(outcome)
        if outcome.how == "crash":
            print(f"CRASH {outcome.target} #{outcome.number}: {outcome.what}\n{outcome.detail}", flush=True)
    result = report(outcomes)
    for name, figures in result["readers"].items():
        print(name, figures)
    print(f"{result['inputs']} inputs, {result['crashes']} crashes")
    if not arguments.only:
        about = {"seed": arguments.seed, "bound": f"{BOUND_BYTES} bytes + {BOUND_FACTOR} x the size of the files"}
        print(save("fuzz_readers", about | result))
    return 1 if result["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
