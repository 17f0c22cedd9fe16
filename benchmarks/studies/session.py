"""Several trials side by side, a process each, until they are done or someone asks to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from benchmarks.studies.trial import Command, Place
from highrank.errors import UserError

__all__ = ["Session"]

# So that two trials on two cores do not take time from one another.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Session:
    """``stopped_by`` is the signal that ended it: SIGALRM where its minutes were over, 0 where all was done.

    A signal is passed on to the processes as SIGINT: they save and end, and at a second one end at once.
    """

    def __init__(self, jobs: int, *, minutes: float | None = None) -> None:
        self.jobs, self.minutes = jobs, minutes
        self.stopped_by = 0
        self.failed: list[str] = []
        self._running: dict[int, tuple[Place, Command, subprocess.Popen[bytes]]] = {}

    def run(self, places: Sequence[Place], finished: Callable[[Place], None]) -> None:
        """Work on ``places`` in their order; ``finished`` is called for each that has come to its end."""
        with self._stoppable():
            try:
                self._work(list(places), finished)
            finally:  # an error of ours leaves no process behind
                self._pass_on()
                while self._running:
                    self._wait()

    def _work(self, waiting: list[Place], finished: Callable[[Place], None]) -> None:
        while True:
            while waiting and len(self._running) < self.jobs and not self.stopped_by:
                self._go_on(waiting.pop(0), None, finished)
            if not self._running:
                return
            place, command, exit_code = self._wait()
            if exit_code == 0:
                self._go_on(place, command, finished)
            elif not self.stopped_by:
                self._give_up(place, f"{command.name} ended with {exit_code}: {place.last_words()}")

    def _go_on(self, place: Place, done: Command | None, finished: Callable[[Place], None]) -> None:
        """Start the next command of a trial, if there is one and nobody has asked to stop."""
        try:
            if done is None and (what := place.take_up()):
                _say(place, what)
            command = place.next_command()
            if command is None:
                finished(place)
                _say(place, "done")
            elif command == done:
                self._give_up(place, f"{command.name} ended well and left no result")
            elif not self.stopped_by:
                self._start(place, command)
        except (UserError, OSError) as error:
            self._give_up(place, str(error))

    def _start(self, place: Place, command: Command) -> None:
        _say(place, " ".join(["highrank", *command.words[3:]]))
        place.began(command)
        with place.log.open("ab") as log:
            # A group of its own: Ctrl-C at a terminal goes to all of a group, and would be the second signal.
            process = subprocess.Popen(
                command.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | ONE_THREAD,
                process_group=0,
            )
        self._running[process.pid] = place, command, process
        if self.stopped_by:  # between the question and the start
            os.kill(process.pid, signal.SIGINT)

    def _wait(self) -> tuple[Place, Command, int]:
        """For whichever process ends first."""
        while True:
            pid, status, usage = os.wait4(-1, 0)
            if pid in self._running:
                break
        place, command, process = self._running.pop(pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        place.ended(command, process.returncode, usage.ru_utime + usage.ru_stime)
        return place, command, process.returncode

    def _give_up(self, place: Place, reason: str) -> None:
        self.failed.append(place.trial.name)
        _say(place, f"given up: {reason}")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        # Under nohup a terminal that closes is to be ignored. SIGINT, which shells ignore for what they start in the
        # background, is not: and a signal with a handler is at its default in the processes, which is to be stopped.
        ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []
        before = {number: signal.signal(number, self._stop) for number in STOPPING if number not in ignored}
        if self.minutes is not None:
            signal.setitimer(signal.ITIMER_REAL, max(60 * self.minutes, 0.001))  # 0 would be never
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or number
        self._pass_on()

    def _pass_on(self) -> None:
        for pid in list(self._running):
            # Not send_signal of the process: it would look whether it has ended, and take that from ``_wait``.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)


def _say(place: Place, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {place.trial.name}: {what}", file=sys.stderr, flush=True)
