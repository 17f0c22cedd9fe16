"""What every benchmark shares: timing candidates in turn, peak memory in processes of their own, one JSON a run."""

import gc
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from highrank import __version__
from highrank.errors import UserError
from highrank.files import write_text
from highrank.runs.device import tf32_in_lstm

__all__ = [
    "LARGE_PAGES",
    "RESULTS",
    "Environment",
    "Memory",
    "Worker",
    "WorkerError",
    "attempt",
    "code_commit",
    "environments",
    "in_turn",
    "machine",
    "memory_of",
    "page_fault_s",
    "peak_rss_bytes",
    "save",
    "summary",
    "versions",
]

FOLDER = Path(__file__).parent
RESULTS = Path(os.environ.get("HIGHRANK_RESULTS") or FOLDER / "results")

Result = TypeVar("Result")

MADE = "made"  # what a worker says before its first call

Environment = Mapping[str, str | None]  # variables of a process; None: not set

# PyTorch asks for large tensors in pages of 2 MiB, which can save page faults and can take longer (docs/speed.md).
LARGE_PAGES: Environment = {"THP_MEM_ALLOC_ENABLE": "1"}


def in_turn(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    failed: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call. The candidates run one after the other in every round, so that a busy minute hits all.

    ``clock``: ``time.process_time`` counts what this process computes, whatever else the machine does. ``failed``: a
    candidate that fails takes no further part, and why is written there; without it, the error is raised.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(warm_up + repeats):
        for name in list(times):
            began = clock()
            if failed is None:
                _finish(candidates[name])
            elif (why := attempt(candidates[name])[1]) is not None:
                failed[name] = why
                del times[name]
                continue
            if round_number >= warm_up:
                times[name].append(clock() - began)
    return times


def attempt(call: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """What a call returns; or, in a line, why it fails: too little memory, or a kernel that does not compile, is a
    result too."""
    try:
        return _finish(call), None
    except Exception as error:  # Triton's are of no common kind
        why = ": ".join(filter(None, (type(error).__name__, str(error).partition("\n")[0])))
    torch.cuda.empty_cache()  # now that the error no longer holds what was computed
    return None, why


def _finish(call: Callable[[], Result]) -> Result:
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p20": 0.2, "p80": 0.8}
    quantiles = {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}
    return {"median_s": statistics.median(ordered), **{f"{name}_s": value for name, value in quantiles.items()}}


class Memory(NamedTuple):
    """What the CPU allocator was asked for: the most that was held at once beyond the start, and the largest piece."""

    peak_bytes: int
    largest_bytes: int


def memory_of(call: Callable[[], object]) -> Memory:
    """Every allocation of ``call``, those inside PyTorch's own operations included, in this process."""
    gc.collect()
    # The profiler cannot be fooled by views or by in-place operations: it hears of it from the allocator itself.
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        kept = call()
    events = sorted(
        (event.start_ns(), index, event.nbytes())
        for index, event in enumerate(profile.kineto_results.events())
        if event.name() == "[memory]"
    )
    assert events, "nothing was allocated: the measurement does not work"
    del kept
    held, peak, largest = 0, 0, 0
    for _, _, nbytes in events:
        held += nbytes
        peak, largest = max(peak, held), max(largest, nbytes)
    return Memory(peak, largest)


class WorkerError(Exception):
    """The process of a worker has ended, or took too long and was killed."""


class Worker:
    """A process of its own for one candidate: called again and again, with its own environment and peak memory.

    ``make`` (picklable) is called there and returns what is called for each measurement. A call raises WorkerError
    where the process has died, or takes more than ``within_s`` (None: may take for ever), once all is loaded, which
    may take as long.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[], object]],
        environment: Environment | None = None,
        *,
        within_s: float | None = None,
    ) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        # A daemon: else an error here would wait for ever for processes that wait for this one.
        self._process = context.Process(target=_serve, args=(make, theirs), daemon=True)
        with _environment(environment or {}):
            self._process.start()
        theirs.close()
        self._within_s = within_s
        self._is_made = False

    def __call__(self) -> Any:
        return self._ask("call")

    def close(self) -> int:
        """Ends the process; returns the largest resident size that it had (Linux), or, if it used a GPU, the most that
        PyTorch had taken there, recorded passes and what is free within it included; in bytes."""
        peak = int(self._ask("close"))
        self._process.join()
        return peak

    def _ask(self, what: str) -> Any:
        try:
            if not self._is_made:
                if (found := self._answer()) != MADE:
                    sys.exit(str(found))  # what its user can mend: a folder that is not there
                self._is_made = True
            self._connection.send(what)
            return self._answer()
        except (EOFError, OSError):  # its own words are on standard error
            self._process.join()
            raise WorkerError(f"its process ended with {self._process.exitcode}") from None

    def _answer(self) -> Any:
        if not self._connection.poll(self._within_s):
            self._process.kill()
            raise WorkerError(f"not done after {self._within_s:.0f} s")
        return self._connection.recv()


def _serve(make: Callable[[], Callable[[], object]], connection: Any) -> None:
    try:
        call = make()
    except UserError as error:
        connection.send(str(error))
        return
    connection.send(MADE)
    while connection.recv() == "call":
        connection.send(call())
    if torch.cuda.is_initialized():
        connection.send(torch.cuda.max_memory_reserved())
        return
    # Not getrusage: on Linux a new process begins with its parent's maximum. The size now where the system
    # keeps no peak, as gVisor.
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Vm")}
    connection.send(sizes.get("VmHWM", sizes["VmRSS"]))


def environments() -> tuple[Environment, Environment]:
    """For processes of their own: PyTorch as it comes, and as the command line sets it where nothing else computes."""
    # Imported here because importing it sets what it says, which must not reach what is measured as it comes.
    from highrank.cli.environment import BESIDE_OTHERS, DEFAULTS

    as_it_comes: Environment = dict.fromkeys(DEFAULTS | BESIDE_OTHERS | LARGE_PAGES)
    return as_it_comes, {**as_it_comes, **DEFAULTS}


@contextmanager
def _environment(values: Environment) -> Iterator[None]:
    """What a process started inside finds (None: not set). For libraries that read it once, when they are loaded."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def peak_rss_bytes(make: Callable[[], Callable[[], object]]) -> int:
    """The largest resident size of a fresh process that makes one call and nothing else."""
    worker = Worker(make)
    worker()
    return worker.close()


def save(name: str, result: Mapping[str, Any], **about_it: str) -> Path:
    """Write results/NAME.json with all that is needed to judge and repeat the run, and what else there is to say of it.

    ``what`` puts it into the list of runs on the page of reproduction; ``command`` is what made it, if it was not this
    process alone.
    """
    about = {
        "command": " ".join(["python", "-m", f"benchmarks.{name.partition('.')[0]}", *sys.argv[1:]]),
        "commit": code_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "device": machine() | {"page_fault_s": page_fault_s()},
        **about_it,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps({"about": about, **result}, indent=2) + "\n")
    return path


def code_commit() -> str:
    """The commit of the code that runs, with "+changes" where files differ from it; results are no code. Where there is
    no git it is what HIGHRANK_COMMIT says."""
    git = ["git", "-C", str(FOLDER)]
    status = [*git, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results"]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run(status, capture_output=True, text=True, check=False)
    except OSError:  # a measurement is not lost for that
        return os.environ.get("HIGHRANK_COMMIT", "")
    if commit.returncode:
        return os.environ.get("HIGHRANK_COMMIT", "")
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    return {"highrank": __version__, "torch": torch.__version__, "python": platform.python_version()}


def machine(*, threads: int | None = None) -> dict[str, Any]:
    """``threads``: those of what was measured, where it is not this process."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **({"tf32_in_lstm": tf32_in_lstm()} if torch.cuda.is_available() else {}),
    }


def page_fault_s() -> float:
    """What the first touch of 4 KiB of memory takes here and now, on a virtual machine sometimes microseconds.

    A program that stores tokens x components x vocabulary touches gigabytes of new memory at every step.
    """
    pages = 1 << 14
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        first_of_each = np.frombuffer(memory, dtype=np.uint8)[:: mmap.PAGESIZE]
        times = []
        for _ in range(2):
            began = time.perf_counter()
            first_of_each.fill(1)
            times.append(time.perf_counter() - began)
        del first_of_each  # or the memory could not be given back
    return (times[0] - times[1]) / pages


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
