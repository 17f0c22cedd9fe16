"""``--workers N``: the same command in N processes on this machine, watched by PyTorch's elastic agent.

Across machines torchrun does the same, or any launcher that sets its variables (docs/scaling.md).
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from highrank.errors import NotRecordedError, UserError
from highrank.launcher import launcher_number
from highrank.progress import UNSTOPPABLE

__all__ = ["AFTER_LOSS", "STOPPED", "ignore_interrupts", "launch", "launched", "leave", "report", "restarted"]

LAUNCHED = "HIGHRANK_LAUNCHED"  # by us: then the launching process is the one voice
AFTER_LOSS = "start it again"  # what to do when a worker is lost; of stages, which save, their options say more
STOPPED = 130  # by Ctrl-C
SAVED = (STOPPED, 143, 129)  # a worker that saved and stopped, as Ctrl-C, SIGTERM or SIGHUP asked
# The agent kills what has not stopped so long after a signal: longer than the update or validation that comes first.
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # PyTorch 2.11 has 30 s, and does not read this
A_DAY_S = "86400"


def launched() -> bool:
    """Is this process one of several that a launcher started?"""
    return launcher_number("WORLD_SIZE") > 1


def restarted() -> bool:
    """Has the launcher started this worker again, after a loss?"""
    return launcher_number("TORCHELASTIC_RESTART_COUNT") > 0


def launch(command: Sequence[str], workers: int, *, after_loss: str = AFTER_LOSS) -> int:
    """Run ``python COMMAND`` in so many processes, to their end. Returns the exit code: that of what failed first."""
    # They are loaded here, when they are needed: PyTorch takes a second.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # many have a level of their own
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we say in a line what it says in many
    environment = {
        LAUNCHED: "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // workers))),
        SHUTDOWN_TIMEOUT: os.environ.get(SHUTDOWN_TIMEOUT, A_DAY_S),
    }
    try:
        with _environment(environment):
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=workers,
                run_id="highrank",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                signals_to_handle=",".join(_passed_on()),
            )
            elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in SAVED:
            print(f"highrank: {_what_failed(rank, failure.exitcode, failure.message, after_loss)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


def _passed_on() -> Iterator[str]:
    """The signals that are passed on to the workers: those that end this process, so not a hangup under nohup."""
    for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            yield name


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What the processes started inside find; this one goes on without it, and says its own errors again."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def leave(exit_code: int) -> int:
    """The exit code; but one of several workers ends here, at once, and so does a process with work that goes on.

    The interpreter's own end would take down the threads of the process group while other workers leave it, which
    aborts the process now and then, its work done; and the libraries of a computation that Ctrl-C has left behind.
    """
    if exit_code == STOPPED:
        ignore_interrupts()
    if launched() or any(thread.name == UNSTOPPABLE for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(exit_code)
    return exit_code


def ignore_interrupts() -> None:
    """Once a Ctrl-C is being followed another one would only end in a traceback of what is taken down."""
    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def report(error: UserError, *, program: str = "highrank") -> None:
    """Say on standard error what a worker, or the only process, cannot do; the launcher is told as well.

    What was computed and cannot be recorded is printed there too, as JSON in a line: it may have taken hours.
    """
    if isinstance(error, NotRecordedError):
        print(json.dumps(error.result), file=sys.stderr)
    rank = launcher_number("RANK")
    reported = type(error).__name__ == "ReportedError"  # by worker 0; its class comes with PyTorch
    text = f"worker {rank}: {error}" if rank and not reported else str(error)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": told}), encoding="utf-8")
    if LAUNCHED not in os.environ and not reported:
        print(f"{program}: {text}", file=sys.stderr)


def _what_failed(rank: int, exit_code: int, message: object, after_loss: str) -> str:
    if isinstance(message, dict):  # what ``report`` told
        return str(message["message"])
    if exit_code < 0:
        return f"worker {rank} died ({message}); {after_loss}"
    return f"worker {rank} failed with exit code {exit_code}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
