"""What commands that compute have in common: a device, a display, and an ending by a signal."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from highrank.cli.display import ConsoleDisplay
from highrank.cli.launch import AFTER_LOSS
from highrank.progress import SILENT
from highrank.runs import choose_device
from highrank.train import Interrupted, Machine
from highrank.workers import join_workers

__all__ = ["Ending", "interruptible", "machine"]


class Ending:
    """How the work inside ended: exit code 0, or 128 + the number of the signal that stopped it."""

    exit_code = 0


@contextmanager
def machine(arguments: argparse.Namespace) -> Iterator[Machine]:
    """Where the command computes, and with whom. What is shown, the first worker shows."""
    device = choose_device(arguments.device)
    checkpoint_every_s = 60 * getattr(arguments, "checkpoint_minutes", 10.0)
    after_loss = getattr(arguments, "after_loss", AFTER_LOSS)
    with join_workers(getattr(arguments, "worker_timeout", 300), after_loss=after_loss) as workers:
        if not workers.is_first:
            yield Machine(device, checkpoint_every_s, SILENT, workers)
            return
        with ConsoleDisplay() as display:
            yield Machine(device, checkpoint_every_s, display, workers)


@contextmanager
def interruptible(where: Machine) -> Iterator[Ending]:
    ending = Ending()
    try:
        yield ending
    except Interrupted as interruption:
        where.display.message(f"highrank: {interruption}")
        ending.exit_code = interruption.exit_code
