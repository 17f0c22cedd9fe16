"""One display of progress for all long work: a live line on a terminal, plain lines when piped; on standard error."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment

from highrank.duration import duration
from highrank.errors import one_line

__all__ = ["ConsoleDisplay"]

PLAIN_LINE_EVERY_S = 15.0
RATE_OVER_S = 20.0
MARK_EVERY_S = 0.1
DRAWN_PER_S = 5
BAR_WIDTH = 24
SHORTEST_NAME = 12
STANDARD_ERROR = 2


class ConsoleDisplay:
    """A ``Display``, and a context manager around the work that it shows."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._line: _Line | None = None
        self._drawing = Live(
            console=self._console,
            get_renderable=self._shown,
            refresh_per_second=DRAWN_PER_S,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what is on its way to a file must not pass through here
        )
        self._meter = _Meter()
        self._printed_at = time.monotonic()

    def __enter__(self) -> "ConsoleDisplay":
        if self._live:
            self._drawing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._line = None
        if self._live:
            with _heard_or_not():
                self._drawing.stop()

    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        line = _Line.of(one_line(task), done, total, loss_nats, self._meter.read(task, done), unit)
        if self._live:
            self._line = None if line.done else line
        elif time.monotonic() - self._printed_at > PLAIN_LINE_EVERY_S:
            self._printed_at = time.monotonic()
            with _heard_or_not():
                print(line.plain(), file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        with _heard_or_not():
            if self._live:
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)
            else:
                print(text, file=sys.stderr, flush=True)

    def _shown(self) -> "_Line | _Nothing":
        return self._line or _Nothing()


@contextmanager
def _heard_or_not() -> Iterator[None]:
    """What is said inside may find that its terminal, or who read the pipe, has gone: the work goes on in silence."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STANDARD_ERROR)
        os.close(nowhere)


class _Nothing:
    """No line at all, not an empty one."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from ()


@dataclass(frozen=True)
class _Line:
    """Where a piece of work stands. ``share``: what is done of it (None: its end is not known)."""

    task: str
    share: float | None
    loss: tuple[str, ...]
    rate: tuple[str, ...]

    @classmethod
    def of(cls, task: str, done: int, total: int | None, loss_nats: float | None, rate: float, unit: str) -> "_Line":
        loss = (
            ()
            if loss_nats is None
            else (
                f"perplexity {math.exp(min(loss_nats, 20)):.1f}",
                f"{loss_nats:.3f} nats",
            )
        )
        if unit == "seconds":
            rate = 1.0  # what is left is what was expected, however coarsely the seconds come
        said = [f"{duration((total - done) / rate)} left"] if rate and total is not None else []
        if total is None:
            said.append(_amount(done, unit))
        if rate and unit != "seconds":
            said.append(f"{_amount(rate, unit)}/s")
        return cls(task, None if total is None else min(1.0, done / total) if total else 1.0, loss, tuple(said))

    @property
    def done(self) -> bool:
        return self.share is not None and self.share >= 1

    @property
    def percent(self) -> list[str]:
        return [] if self.share is None else [f"{100 * self.share:.0f}%"]

    def plain(self) -> str:
        return f"{self.task}: {', '.join([*self.percent, *self.loss, *self.rate])}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line, whatever the width: what matters least goes first (bar, rate, nats, ...), then the task is cut."""
        width = options.max_width - 1  # some terminals wrap after the last column
        figures = [*self.percent, *self.loss[:1], *self.rate[:1], *self.loss[1:], *self.rate[1:]]
        name = min(cell_len(self.task), max(SHORTEST_NAME, width // 2))
        while len(figures) > 1 and name + 2 + cell_len(", ".join(figures)) > width:
            figures.pop()
        text = set_cell_size(", ".join(figures), min(width, cell_len(", ".join(figures))))
        room = max(0, width - cell_len(text) - 2)
        task = self.task if cell_len(self.task) <= room else f"{set_cell_size(self.task, max(0, room - 2))}.."
        yield Segment(set_cell_size(f"{task}  ", min(width - cell_len(text), cell_len(task) + 2)))
        if self.share is not None and room - cell_len(task) > BAR_WIDTH:
            bar = list(console.render(ProgressBar(total=1.0, completed=self.share, width=BAR_WIDTH), options))
            yield from bar
            yield Segment(" " * (BAR_WIDTH + 1 - Segment.get_line_length(bar)))  # without colours it is its done part
        yield Segment(text)


class _Meter:
    """Rate over the last seconds."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []
        self._kind = ""

    def read(self, task: str, done: int) -> float:
        kind = task.partition(": epoch")[0]  # epochs of one stage are one piece of work
        now = time.monotonic()
        if kind != self._kind or (self._marks and done < self._marks[-1][1]):
            self._kind, self._marks = kind, []
        if not self._marks or now - self._marks[-1][0] > MARK_EVERY_S:
            self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_OVER_S:
            self._marks.pop(0)
        first_at, first_done = self._marks[0]
        elapsed = now - first_at
        return (done - first_done) / elapsed if elapsed > 0 else 0.0


def _amount(number: float, unit: str) -> str:
    if unit == "bytes":
        return f"{number / 1e6:,.1f} MB"
    return f"{number:,.0f} {unit}"
