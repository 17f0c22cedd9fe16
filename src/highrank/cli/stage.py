"""What commands that compute have in common: a device, a display, and an ending by a signal."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from highrank.cli.display import ConsoleDisplay
from highrank.runs import choose_device
from highrank.train import Interrupted, Machine

__all__ = ["Ending", "interruptible", "machine"]


class Ending:
    """How the work inside ended: exit code 0, or 128 + the number of the signal that stopped it."""

    exit_code = 0


@contextmanager
def machine(arguments: argparse.Namespace) -> Iterator[Machine]:
    device = choose_device(arguments.device)
    with ConsoleDisplay() as display:
        yield Machine(device, 60 * getattr(arguments, "checkpoint_minutes", 10.0), display)


@contextmanager
def interruptible() -> Iterator[Ending]:
    ending = Ending()
    try:
        yield ending
    except Interrupted as interruption:
        print(f"highrank: {interruption}", file=sys.stderr)
        ending.exit_code = interruption.exit_code
