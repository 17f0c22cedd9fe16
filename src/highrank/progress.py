"""How long work tells of itself: what the code that works needs of a display, and nothing of how it looks."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar, final

__all__ = ["READ_EVERY_S", "SILENT", "UNSTOPPABLE", "Display", "Pace", "UntilStopped", "by_the_clock"]

READ_EVERY_S = 0.5  # how often a loss is read for the display: a reading makes a GPU wait
CLOCK_EVERY_S = 0.2
SLOWER_BY = 1.05  # work that takes longer than expected is taken to need so much of the time that has passed
UNSTOPPABLE = "highrank: work that cannot be stopped"  # the name of its thread

Result = TypeVar("Result")


class Display(Protocol):
    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        """``done`` of ``total`` units of ``task`` are done, at this mean loss lately if there is one. To be called
        often. ``total`` None: not known. Bytes are shown as megabytes; seconds are those that have passed."""

    def message(self, text: str) -> None:
        """Something worth keeping on the screen."""


@final
class _Silent:
    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        return None

    def message(self, text: str) -> None:
        return None


SILENT: Display = _Silent()


@final
class UntilStopped:
    """A display, and a way to end its work from another thread: once ``stopping`` is set, the next progress that is
    told raises ``error``."""

    def __init__(self, display: Display, stopping: threading.Event, error: Exception) -> None:
        self._display, self._stopping, self._error = display, stopping, error

    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        if self._stopping.is_set():
            raise self._error
        self._display.progress(task, done, total, loss_nats, unit=unit)

    def message(self, text: str) -> None:
        self._display.message(text)


@final
class Pace:
    """Says when it is time to look, every so many seconds, however fast the steps of the work are."""

    def __init__(self, every_s: float = READ_EVERY_S) -> None:
        self._every_s = every_s
        self._looked_at = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at < self._every_s:
            return False
        self._looked_at = now
        return True


def by_the_clock(work: Callable[[], Result], display: Display, task: str, expected_s: float | None = None) -> Result:
    """What ``work`` returns or raises; on the way the time that has passed is shown, over ``expected_s`` if given.

    For one long call that tells nothing of itself. Unless ``display`` is silent it runs in a thread, so it must release
    Python's lock. Ctrl-C then ends the waiting at once. The call goes on behind and keeps no process alive; but one
    that ends meanwhile should do so by ``os._exit``, as libraries that compute are not made for being taken down at
    work (``UNSTOPPABLE`` is the thread's name).
    """
    if display is SILENT:
        return work()
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    began = time.monotonic()
    thread = threading.Thread(target=run, name=UNSTOPPABLE, daemon=True)
    thread.start()
    thread.join(CLOCK_EVERY_S)
    while thread.is_alive():
        passed = time.monotonic() - began
        total = None if expected_s is None else math.ceil(max(expected_s, SLOWER_BY * passed, passed + 1))
        display.progress(task, int(passed), total, unit="seconds")
        thread.join(CLOCK_EVERY_S)
    passed_s = int(time.monotonic() - began)
    display.progress(task, passed_s, passed_s, unit="seconds")
    return outcome.result()
