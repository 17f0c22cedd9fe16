"""What a run's metrics.jsonl tells of its training: losses by epoch, by token and by time, over its stages."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from highrank.perplexity import perplexity
from highrank.runs import STAGES, RunFolder

__all__ = ["History", "Mark", "Point", "history_of"]

MOST = 10**12  # of epochs, updates, seconds: more is damage
MOST_INTERVALS = 120  # of one run: single intervals are noise


class Point(NamedTuple):
    """A loss at a place of the run. ``what``: "training" (the mean since the last such point, with dropout) or
    "validation". epoch counts on over the stages; tokens (None: the length of the text is not known) are those
    trained on; elapsed_s is the time spent in the stages."""

    stage: str
    what: str
    epoch: float
    tokens: float | None
    elapsed_s: float
    loss_nats: float

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss_nats)


class Mark(NamedTuple):
    """Where something begins: averaged SGD, fine-tuning. Places as in ``Point``."""

    what: str
    epoch: float
    tokens: float | None
    elapsed_s: float


class History(NamedTuple):
    points: tuple[Point, ...]
    marks: tuple[Mark, ...]

    @property
    def validations(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.what == "validation")

    def best(self, stage: str) -> Point | None:
        """The lowest validation loss of a stage."""
        return min(
            (point for point in self.validations if point.stage == stage),
            key=lambda point: point.loss_nats,
            default=None,
        )


def history_of(run: RunFolder) -> History:
    """Empty for a run without records, as an imported one is.

    metrics.jsonl holds epochs and updates; how far into its epoch an update lies, and how many tokens it is from the
    start, is in proportion to the updates, whose lengths differ a little. Records that lack a number are left out.
    """
    records = run.metrics()
    epoch_tokens = _epoch_tokens(run)
    points: list[Point] = []
    marks: list[Mark] = []
    epochs_before, seconds_before = 0, 0.0
    for stage in STAGES:
        of_stage = [record for record in records if record["stage"] == stage and _whole(record)]
        if not of_stage:
            continue
        if stage != STAGES[0]:
            marks.append(_mark("fine-tuning", epochs_before, epoch_tokens, seconds_before))
        clock = _Clock(run, of_stage, epoch_tokens)
        averaging = False
        last_s = 0.0
        for record in of_stage:
            epoch = epochs_before + clock.epochs(record)
            elapsed_s = seconds_before + record["elapsed_s"]
            if record["event"] == "validation" and record.get("averaging") is True and not averaging:
                averaging = True
                if stage == STAGES[0]:  # fine-tuning is averaged SGD from its first step on
                    marks.append(_mark("averaged SGD", epochs_before + record["epoch"] - 1, epoch_tokens, last_s))
            what = "validation" if record["event"] == "validation" else "training"
            tokens = None if epoch_tokens is None else epoch * epoch_tokens
            points.append(Point(stage, what, epoch, tokens, elapsed_s, record["loss_nats"]))
            if what == "validation":
                last_s = elapsed_s
        epochs_before += max(record["epoch"] for record in of_stage)
        seconds_before = max(point.elapsed_s for point in points)
    return History(tuple(_thinned(points)), tuple(marks))


class _Clock:
    """Turns an update of a stage into epochs since its beginning."""

    def __init__(self, run: RunFolder, records: Iterable[Mapping[str, Any]], epoch_tokens: int | None) -> None:
        self._ends = {0: 0}  # the last update of each epoch that was trained to its end
        steps = 0
        for record in records:
            steps = max(steps, record["step"])
            if record["event"] == "validation" and record["step"]:
                self._ends[record["epoch"]] = record["step"]
        last = max(self._ends)
        if last:
            self._updates = self._ends[last] / last
        elif epoch_tokens is not None:
            self._updates = epoch_tokens / (run.config.train.bptt * run.config.train.batch)
        else:
            self._updates = float(max(1, steps))

    def epochs(self, record: Mapping[str, Any]) -> float:
        epoch, step = record["epoch"], record["step"]
        if record["event"] == "validation":
            return float(epoch if step else 0)
        begun = self._ends.get(epoch - 1, (epoch - 1) * self._updates)
        updates = self._ends.get(epoch, begun + self._updates) - begun
        return float(epoch - 1 + min(max((step - begun) / max(updates, 1.0), 0.0), 1.0))


def _epoch_tokens(run: RunFolder) -> int | None:
    """Tokens that one epoch predicts: every token of a column but its first, the remainder dropped."""
    count = run.facts.get("corpus", {}).get("tokens", {}).get("train", 0)
    if count < 1:
        return None
    batch = run.config.train.batch
    return max(1, batch * (count // batch - 1))


def _mark(what: str, epoch: float, epoch_tokens: int | None, elapsed_s: float) -> Mark:
    return Mark(what, epoch, None if epoch_tokens is None else epoch * epoch_tokens, elapsed_s)


def _whole(record: Mapping[str, Any]) -> bool:
    """Has it the numbers that are read here? A line that a person or a fault has changed may not."""
    return (
        record["event"] in ("interval", "validation")
        and 1 <= record["epoch"] <= MOST
        and 0 <= record["step"] <= MOST
        and all(_is_amount(record.get(name)) for name in ("loss_nats", "elapsed_s"))
    )


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST


def _thinned(points: list[Point]) -> list[Point]:
    """At most so many intervals, each the mean of a few neighbours; every validation."""
    intervals = sum(point.what == "training" for point in points)
    group = math.ceil(intervals / MOST_INTERVALS)
    if group <= 1:
        return points
    thinned: list[Point] = []
    waiting: list[Point] = []

    def flush() -> None:
        if waiting:
            mean = math.fsum(point.loss_nats for point in waiting) / len(waiting)
            thinned.append(waiting[-1]._replace(loss_nats=mean))
            waiting.clear()

    for point in points:
        if point.what == "validation":
            flush()  # a mean does not reach over the end of an epoch
            thinned.append(point)
            continue
        waiting.append(point)
        if len(waiting) == group:
            flush()
    flush()
    return thinned
