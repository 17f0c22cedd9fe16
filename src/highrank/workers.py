"""The processes that share a run: who they are, and all that they tell one another.

PyTorch's process group does the work; here stands what a run asks of it. Every worker makes the same calls in the same
order. ``ALONE`` is the run of one process, for which each call is free.
"""

import datetime
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from highrank.errors import UserError
from highrank.launcher import launcher_number

__all__ = ["ALONE", "ReportedError", "Workers", "join_workers"]

T = TypeVar("T")
MEETING_S = 300.0  # one may still be reading its text when the others are there
ROLL_CALL_S = 3.0  # those that are alive notice a loss at nearly the same time


class ReportedError(UserError):
    """An error of the first worker, which says it, raised on the others so that they end as it does."""


@final
class Workers:
    """``count`` processes, of which this one has number ``rank``. Only the first, number 0, writes files.

    Every call may raise UserError, naming the workers that are lost, when one has died or has not answered in time, and
    ending with what to do then, ``after_loss``.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, store: Store | None = None, *, after_loss: str = "start it again"
    ) -> None:
        self.rank, self.count, self._store, self._after_loss = rank, count, store, after_loss

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, tasks: int) -> range:
        """Which of so many tasks are this worker's."""
        return range(self.rank, tasks, self.count)

    def owner(self, task: int) -> int:
        """Whose share a task is."""
        return task % self.count

    def first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on the first worker, which alone does it; a UserError there is raised on all."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        failure: UserError | None = None
        if self.is_first:
            try:
                outcome[0] = work()
            except UserError as error:
                failure, outcome[1] = error, (str(error), error.exit_code)
        with self._naming_the_lost():
            dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            message, exit_code = outcome[1]
            raise ReportedError(message, exit_code=exit_code)
        result: T = outcome[0]
        return result

    def largest(self, *values: int) -> list[int]:
        """The largest of each over the workers: how they agree on what one of them has noticed."""
        if self.count == 1:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.int64)
        with self._naming_the_lost():
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return [int(value) for value in agreed]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the workers."""
        self.finish([self.begin_adding_up(tensor) for tensor in tensors])

    def begin_adding_up(self, tensor: Tensor) -> dist.Work | None:
        """Begin to replace ``tensor`` by its sum over the workers; ``finish`` waits for it."""
        if self.count == 1:
            return None
        with self._naming_the_lost():
            begun: dist.Work | None = dist.all_reduce(tensor, async_op=True)
        return begun

    def finish(self, begun: Iterable[dist.Work | None]) -> None:
        with self._naming_the_lost():
            for work in begun:
                if work is not None:
                    work.wait()

    def copy_from(self, owner: int, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the worker ``owner``."""
        if self.count > 1:
            with self._naming_the_lost():
                for tensor in tensors:
                    dist.broadcast(tensor, src=owner)

    @contextmanager
    def _naming_the_lost(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what every backend raises when a connection is gone or silent
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(f"{self._lost(error)}; {self._after_loss}") from error

    def _lost(self, error: RuntimeError) -> str:
        """Who does not answer a roll call, which goes through the store: the connections between workers are gone.

        ``error`` need not have been of a connection: of one that only this worker had the others know nothing, and do
        not answer either.
        """
        assert self._store is not None
        first_line = str(error).strip().partition("\n")[0]
        try:
            self._store.set(f"answers/{self.rank}", "1")
            waiting = set(range(self.count)) - {self.rank}
            until = time.monotonic() + ROLL_CALL_S
            while waiting and time.monotonic() < until:
                waiting = {rank for rank in waiting if not self._store.check([f"answers/{rank}"])}
                time.sleep(0.1)
            names = [f"worker {rank} ({self._store.get(f'place/{rank}').decode()})" for rank in sorted(waiting)]
        except RuntimeError:
            return "the machine of worker 0, where the workers meet, cannot be reached any more"
        if not names:
            return f"what the workers do together failed, though all of them are alive ({first_line})"
        have = "has" if len(names) == 1 else "have"
        return f"{' and '.join(names)} {have} died or stopped answering (worker {self.rank} met: {first_line})"


ALONE = Workers()


@contextmanager
def join_workers(timeout_s: float, *, after_loss: str = "start it again") -> Iterator[Workers]:
    """The workers of this run: those that the launcher (torchrun, ``--workers``, any that sets its variables) started.

    Without a launcher, ``ALONE``. ``timeout_s`` is how long a worker waits for the others in one call before it
    counts them as lost; at the start it waits five minutes at least. ``after_loss`` is what the error says to do then.
    Raises UserError if the others do not come.
    """
    count, attempt = launcher_number("WORLD_SIZE"), launcher_number("TORCHELASTIC_RESTART_COUNT")
    if count == 1:
        yield ALONE
        return
    timeout, patience_s = datetime.timedelta(seconds=timeout_s), max(timeout_s, MEETING_S)
    patience = datetime.timedelta(seconds=patience_s)
    try:
        store, rank, count = next(rendezvous("env://", timeout=patience))
        # A worker that was started again meets the others under new names: what it left behind is not theirs.
        store = PrefixStore(f"highrank/{attempt}", store)
        store.set(f"place/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        store.wait([f"place/{other}" for other in range(count)], patience)
        # Decisions are agreed on through the CPU, so that a GPU never waits for one.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the {count} workers have not found together in {patience_s:.0f} s: {reason}") from error
    # The group is not destroyed at the end: where a worker is lost that would wait for it, and PyTorch's threads may
    # fail while they are taken down beside others that leave. The command line ends the process instead.
    yield Workers(rank, count, store, after_loss=after_loss)
