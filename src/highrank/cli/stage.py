"""What commands that compute have in common: a device, a display, and an ending by a signal."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from highrank.cli.display import ConsoleDisplay
from highrank.cli.launch import AFTER_LOSS
from highrank.errors import UserError
from highrank.progress import SILENT
from highrank.runs import choose_device
from highrank.train import Interrupted, Machine
from highrank.workers import Workers, join_workers

__all__ = ["Ending", "interruptible", "machine"]


class Ending:
    """How the work inside ended: exit code 0, or 128 + the number of the signal that stopped it."""

    exit_code = 0


@contextmanager
def machine(arguments: argparse.Namespace) -> Iterator[Machine]:
    """Where the command computes, and with whom. What is shown, the first worker shows.

    Raises UserError where several workers were started and the command, which has no --workers, shares no work.
    """
    device = choose_device(arguments.device)
    checkpoint_every_s = 60 * getattr(arguments, "checkpoint_minutes", 10.0)
    after_loss = getattr(arguments, "after_loss", AFTER_LOSS)
    with join_workers(getattr(arguments, "worker_timeout", 300), after_loss=after_loss) as workers:
        if workers.count > 1 and not hasattr(arguments, "workers"):
            workers.first(lambda: _refuse(workers))
        if not workers.is_first:
            yield Machine(device, checkpoint_every_s, SILENT, workers)
            return
        with ConsoleDisplay() as display:
            yield Machine(device, checkpoint_every_s, display, workers)


def _refuse(workers: Workers) -> None:
    raise UserError(
        f"{workers.count} workers were started, and this command shares no work: start it once, without a launcher",
        exit_code=2,
    )


@contextmanager
def interruptible(where: Machine) -> Iterator[Ending]:
    ending = Ending()
    try:
        yield ending
    except Interrupted as interruption:
        where.display.message(f"highrank: {interruption}")
        ending.exit_code = interruption.exit_code
