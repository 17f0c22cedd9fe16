"""Who may write into a run folder, and when: locks that the kernel frees when their holder dies, whatever killed it.

.lock          held as long as a stage is at work, so that a second one is refused
.lock-holder   who that is, for the message; says nothing where .lock is not held
.writing       held for the moment of changing what evaluations write too, beside a training at work
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from highrank.errors import UserError
from highrank.files import explained
from highrank.reading import read_json

if TYPE_CHECKING:  # it comes with PyTorch, which asking for a lock does not need
    from highrank.workers import Workers

__all__ = ["at_work", "holder", "is_held", "writing"]

LOCK, HOLDER, WRITING = ".lock", ".lock-holder", ".writing"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
REFUSED_AFTER_S = 0.5  # not at once: ``is_held`` takes the lock for a moment
WRITTEN_AFTER_S = 60.0


@contextlib.contextmanager
def at_work(run: Path, workers: "Workers | None" = None) -> Iterator[None]:
    """Inside, no other process is at work on the stages of the run folder ``run``. Re-entrant within a thread.

    Of several ``workers`` the first one holds the lock. Raises UserError: someone is at work there already (it says
    who), the folder cannot be written, or its file system has no locks.
    """
    with contextlib.ExitStack() as held:
        if workers is None:
            held.enter_context(_at_work_alone(run))
        else:
            workers.first(lambda: held.enter_context(_at_work_alone(run)))
        yield


@contextlib.contextmanager
def _at_work_alone(run: Path) -> Iterator[None]:
    lock = _lock(run / LOCK)
    nested = lock.is_locked
    try:
        _acquire(lock, run, REFUSED_AFTER_S)
    except Timeout as error:
        who = holder(run) or "another process"
        raise UserError(f"{run}: {who} is at work on it; wait until it has ended, or stop it") from error
    try:
        if not nested:
            _write_holder(run)
        yield
    finally:
        if not nested:
            with contextlib.suppress(OSError):  # it is a note; the lock is what counts
                (run / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def writing(run: Path) -> Iterator[None]:
    """Inside, no other process changes results.json of ``run`` or writes beside a stage. To be held for a moment.

    Waits for its turn; re-entrant within a thread. Raises UserError as ``at_work`` does, and after a minute in vain.
    """
    lock = _lock(run / WRITING)
    try:
        _acquire(lock, run, WRITTEN_AFTER_S)
    except Timeout as error:
        raise UserError(
            f"{run}: another process has been writing its results for {WRITTEN_AFTER_S:.0f} s (is one suspended?)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_held(run: Path) -> bool:
    """Is a stage of ``run`` at work? Changes nothing. False too where no file can be opened for writing to find out."""
    path = run / LOCK
    if not path.exists():  # asking for the lock would make the file
        return False
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def holder(run: Path) -> str | None:
    """Who holds the lock, in words, if the lock is held and its holder could write that down."""
    try:
        note = read_json(run / HOLDER)
        return f"process {note['pid']} on {note['host']} (since {note['since']})"
    except (UserError, KeyError):
        return None


def _lock(path: Path) -> FileLock:
    # One object a path: it counts how often it was taken, and whoever asks for it again in this thread has it.
    return FileLock(path, is_singleton=True, fallback_to_soft=False)


def _acquire(lock: FileLock, run: Path, timeout_s: float) -> None:
    try:
        with explained(run):
            lock.acquire(timeout=timeout_s)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{run}: its file system has no locks, which keep two processes from working on one run; "
            "take a folder on another one"
        ) from error


def _write_holder(run: Path) -> None:
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # on a full disk the lock holds without it
        (run / HOLDER).write_text(json.dumps(note), encoding="utf-8")
