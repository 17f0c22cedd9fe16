"""The first Ctrl-C, SIGTERM or end of the terminal asks the loop to save and stop; a second of the first two stops at
once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopRequest", "stop_on_signal"]

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP is not None else []))


class Interrupted(Exception):  # noqa: N818 - not an error: it ended as it was asked to
    """The run was asked to stop, has saved itself and can go on. ``exit_code`` is 128 + the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """The number of the signal that asked to stop; 0 if none did."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    request = StopRequest()
    before: dict[int, Any] = {}

    def ask(signal_number: int, frame: FrameType | None) -> None:
        request.signal_number = signal_number
        for number in before:
            # The next one ends the process; but a closed terminal's comes twice, from the shell and from the kernel.
            signal.signal(number, signal.SIG_IGN if number == HANGUP else signal.SIG_DFL)

    try:
        for number in STOPPING:
            if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup: it is to outlive its terminal
            try:
                before[number] = signal.signal(number, ask)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                break
        yield request
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
