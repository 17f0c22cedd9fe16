"""What a stage leaves behind while it runs: metrics.jsonl, log.txt, TensorBoard events, and a display for people."""

from collections.abc import Iterator
from typing import Any

from highrank.data.batches import Columns
from highrank.evaluate import Evaluation
from highrank.perplexity import perplexity
from highrank.progress import Display
from highrank.runs import RunFolder
from highrank.train.state import Position
from highrank.workers import Workers

__all__ = ["Recorder"]


class Recorder:
    """Records of one stage of ``run``, written by the first of the ``workers``; all make the same calls.

    TensorBoard's events too, where ``highrank[tensorboard]`` is installed.
    """

    def __init__(self, run: RunFolder, stage: str, display: Display, workers: Workers, *, first_step: int) -> None:
        self.run, self.stage, self.display, self.workers = run, stage, display, workers
        self._tensorboard: Any = None
        workers.first(lambda: self._begin_events(first_step))

    def _begin_events(self, first_step: int) -> None:
        try:
            from highrank.train.events import EventFile  # imports TensorBoard: seconds, so only here
        except ModuleNotFoundError:
            return
        self._tensorboard = EventFile(self.run.path / "tensorboard" / self.stage, first_step=first_step)

    def progress(self, position: Position, columns: Columns, epochs: int) -> None:
        done = (position.epoch - 1) * columns.length + position.start
        task = f"{self.stage}: epoch {position.epoch}/{epochs}"
        self.display.progress(
            task, done * columns.batch, epochs * columns.length * columns.batch, position.interval_mean
        )

    def interval(self, position: Position, lr: float) -> None:
        """The figures since the last interval; ``lr`` is the rate that its last update had by the schedule."""
        loss_nats = position.interval_mean
        figures = {
            "loss_nats": loss_nats,
            "perplexity": perplexity(loss_nats),
            "gradient_norm": position.interval_norm / position.interval_steps,
            "lr": lr,
            "tokens_per_s": round(position.interval_tokens / position.interval_s, 1),
        }
        self.workers.first(lambda: self._add(position, "interval", figures))

    def validation(self, position: Position, evaluation: Evaluation) -> None:
        self.workers.first(lambda: self._add_validation(position, evaluation))

    def message(self, text: str) -> None:
        self.workers.first(lambda: self._say(text))

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _add_validation(self, position: Position, evaluation: Evaluation) -> None:
        # None: fine-tuning validates the model that it starts from, before it trains.
        train_loss = position.epoch_loss / position.epoch_tokens if position.epoch_tokens else None
        self._add(
            position,
            "validation",
            {
                "train_loss_nats": train_loss,
                "loss_nats": evaluation.loss_nats,
                "perplexity": evaluation.perplexity,
                "averaging": position.averaging,
                **({} if evaluation.components is None else evaluation.components._asdict()),
            },
        )
        if train_loss is None:
            self._say(f"{self.stage}: starting at valid perplexity {evaluation.perplexity:.2f}")
            return
        self._say(
            f"{self.stage}: epoch {position.epoch}, update {position.step}: "
            f"train perplexity {perplexity(train_loss):.2f}, "
            f"valid perplexity {evaluation.perplexity:.2f}{' (averaged weights)' if position.averaging else ''}, "
            f"{position.elapsed_s:.0f} s"
        )

    def _say(self, text: str) -> None:
        self.run.log(text)
        self.display.message(text)

    def _add(self, position: Position, event: str, figures: dict[str, Any]) -> None:
        where = {"stage": self.stage, "event": event, "epoch": position.epoch, "step": position.step}
        self.run.add_metrics(where | figures | {"elapsed_s": round(position.elapsed_s, 3)})
        if self._tensorboard is not None:
            self._tensorboard.add(dict(_named(event, figures)), position.step)


def _named(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """One number after the other: those of a list by their place, ``validation/mean_prior/0``. None is no number."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _named(f"{name}/{key}", part)
    elif value is not None:
        yield name, float(value)
