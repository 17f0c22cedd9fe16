"""One display of progress for all long work: a live line on a terminal, plain lines when piped; on standard error."""

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

__all__ = ["ConsoleDisplay"]

PLAIN_LINE_EVERY_S = 15.0
RATE_OVER_S = 20.0


class ConsoleDisplay:
    """A ``Display``, and a context manager around the work that it shows."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[figures]}"),
            console=Console(stderr=True),
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._meter = _Meter()
        self._printed_at = time.monotonic()

    def __enter__(self) -> "ConsoleDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(
        self, task: str, done: int, total: int, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        rate, left_s = self._meter.read(task, done, total)
        said = []
        if loss_nats is not None:
            said.append(f"{loss_nats:.3f} nats, perplexity {math.exp(min(loss_nats, 20)):.1f}")
        if rate:
            said.append(f"{rate:,.0f} {unit}/s, {_duration(left_s)} left")
        figures = ", ".join(said)
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(task, figures=figures)
            self._bar.update(self._task, description=task, completed=done, total=total, figures=figures)
            if done >= total:
                self._bar.remove_task(self._task)
                self._task = None
        elif time.monotonic() - self._printed_at > PLAIN_LINE_EVERY_S:
            self._printed_at = time.monotonic()
            print(f"{task}: {100 * done / max(total, 1):.0f}%, {figures}", file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


class _Meter:
    """Rate over the last seconds, and the time left at that rate."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        self._kind = ""

    def read(self, task: str, done: int, total: int) -> tuple[float, float]:
        kind = task.partition(": epoch")[0]  # epochs of one stage are one piece of work
        now = time.monotonic()
        if kind != self._kind or (self._marks and done < self._marks[-1][1]):
            self._kind, self._marks = kind, []
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_OVER_S:
            self._marks.pop(0)
        first_at, first_done = self._marks[0]
        elapsed = now - first_at
        rate = (done - first_done) / elapsed if elapsed > 0 else 0.0
        return rate, (total - done) / rate if rate else math.inf


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
