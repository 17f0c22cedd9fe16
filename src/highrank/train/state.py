"""Where a stage stands: all that a killed process needs to go on as if nothing had happened."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from highrank.errors import UserError
from highrank.models import LanguageModel, State
from highrank.runs import Config
from highrank.runs.checkpoint import Checkpoint, save_checkpoint
from highrank.runs.tensors import model_tensors, put_model_tensors
from highrank.train.averaging import WeightAverage
from highrank.train.gradients import GradientSum
from highrank.train.graphs import RecordedPasses
from highrank.train.optimizer import make_optimizer
from highrank.workers import Workers

__all__ = ["Position", "StageState"]

# Fields of a position that an earlier version did not save.
ADDED = frozenset({"interval_s", "lr"})


@dataclass
class Position:
    """Plain numbers of a stage. ``start`` is where the next segment begins; ``history`` the validation losses so far.

    Sums of nats and counts of tokens: ``epoch_`` since the epoch began, ``interval_`` since the last record;
    ``interval_s`` is the time of its updates alone, ``elapsed_s`` that of all the stage has done.
    ``averaged`` counts the weights that went into the average, and ``late_lr`` is the rate of the last step while
    averaging (see ``StageState.step``), of a stage whose rate was set to ``lr``. ``started_from`` is the hash of the
    model file that fine-tuning began with.
    """

    epoch: int = 1
    start: int = 0
    step: int = 0
    averaging: bool = False
    averaged: Annotated[int, Meta(ge=0, le=2**53)] = 0
    late_lr: float | None = None
    lr: float | None = None
    finished: bool = False
    best_loss: float | None = None
    best_epoch: int = 0
    history: list[float] = field(default_factory=list)
    epoch_loss: float = 0.0
    epoch_tokens: int = 0
    interval_loss: float = 0.0
    interval_tokens: int = 0
    interval_steps: int = 0
    interval_norm: float = 0.0
    interval_s: float = 0.0
    elapsed_s: float = 0.0
    started_from: str = ""

    def add_step(self, predictions: int, tokens: int) -> None:
        self.start += predictions
        self.step += 1
        self.epoch_tokens += tokens
        self.interval_tokens += tokens
        self.interval_steps += 1

    def add_losses(self, loss_sum: float, norm_sum: float) -> None:
        self.epoch_loss += loss_sum
        self.interval_loss += loss_sum
        self.interval_norm += norm_sum

    @property
    def interval_mean(self) -> float:
        """Nats a token since the last record."""
        return self.interval_loss / max(1, self.interval_tokens)

    def start_interval(self) -> None:
        self.interval_loss, self.interval_tokens, self.interval_steps, self.interval_norm = 0.0, 0, 0, 0.0
        self.interval_s = 0.0

    def start_epoch(self) -> None:
        self.epoch += 1
        self.start = 0
        self.epoch_loss, self.epoch_tokens = 0.0, 0


class StageState:
    """The position, the model, its optimizer and the hidden state carried by each micro-batch."""

    def __init__(self, model: LanguageModel, config: Config, *, started_from: str = "") -> None:
        self.model = model
        self.position = Position(started_from=started_from)
        self.batch = config.micro_batch
        groups = config.train.batch // config.micro_batch
        self.carried: list[State] = [model.initial_state(self.batch) for _ in range(groups)]
        self.gradient_sum = GradientSum(model) if groups > 1 else None
        self.recorded = RecordedPasses(model, config) if config.train.cuda_graphs else None
        self.optimizer = make_optimizer(model, config)
        self.average: WeightAverage | None = None
        self._average_power = config.train.average_power

    def start_averaging(self) -> None:
        self.position.averaging = True
        self.average = WeightAverage(self.model, self._average_power)

    def step(self, lr: float) -> None:
        """Follow the gradient, and add the weights to their average if there is one.

        While averaging, from its second step on, at the rate that was meant for the step before: as PyTorch's ASGD,
        which trained the paper's models.
        """
        position = self.position
        if self.average is None:
            self.optimizer.step(lr)
            return
        self.optimizer.step(lr if position.late_lr is None else position.late_lr)
        position.late_lr = lr
        position.averaged += 1
        self.average.add(position.averaged)

    def start_epoch(self) -> None:
        """The text begins again: with an empty state."""
        self.position.start_epoch()
        self.carried = [self.model.initial_state(self.batch) for _ in self.carried]

    def share(self, workers: Workers) -> None:
        """Give every worker the same weights and averages, and the hidden states that the others carry."""
        workers.copy_from(0, [*model_tensors(self.model).values(), *self._learned().values()])
        for index, state in enumerate(self.carried):
            workers.copy_from(workers.owner(index), [tensor for pair in state for tensor in pair])

    def is_finite(self) -> bool:
        """Are all weights and averages numbers? An update can lose them before any loss shows it."""
        learned = [*model_tensors(self.model).values(), *self._learned().values()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in learned if tensor.is_floating_point())

    def save(self, folder: Path) -> Path:
        tensors = self._learned() | _state_tensors(self.carried)
        return save_checkpoint(
            folder, self.position.step, model_tensors(self.model), tensors, {"position": asdict(self.position)}
        )

    def _learned(self) -> dict[str, Tensor]:
        """What the updates made beside the weights."""
        averages = {} if self.average is None else self.average.named_tensors()
        return self.optimizer.named_tensors() | averages

    def restore(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.state.get("position", {})
        known = {item.name for item in fields(Position)}
        if not isinstance(saved, dict) or not known - ADDED <= saved.keys() <= known:
            raise UserError(f"{checkpoint.path}: written by another version of highrank; it cannot be resumed")
        try:
            position = msgspec.convert(saved, Position)
        except msgspec.ValidationError as error:
            raise UserError(f"{checkpoint.path}: damaged, its position cannot be read: {error}") from error
        if "interval_s" not in saved and position.step:  # at the speed of the stage so far: the next record has one
            position.interval_s = position.elapsed_s * position.interval_steps / position.step
        put_model_tensors(self.model, checkpoint.model, source=checkpoint.path)
        self.optimizer.put(checkpoint.tensors)
        if position.averaging:
            self.average = WeightAverage(self.model, self._average_power)
            self.average.put(checkpoint.tensors)
        self.position = position
        device = next(self.model.parameters()).device
        _put_state_tensors(self.carried, checkpoint.tensors, device, checkpoint.path)


def _state_tensors(carried: list[State]) -> dict[str, Tensor]:
    return {
        f"carried.{index}.{layer}.{part}": tensor
        for index, state in enumerate(carried)
        for layer, pair in enumerate(state)
        for part, tensor in zip(("hidden", "cell"), pair, strict=True)
    }


def _put_state_tensors(carried: list[State], tensors: Mapping[str, Tensor], device: torch.device, source: Path) -> None:
    for index, state in enumerate(carried):
        for layer, (hidden, _) in enumerate(state):
            parts: list[Any] = [tensors.get(f"carried.{index}.{layer}.{part}") for part in ("hidden", "cell")]
            if any(part is None or part.shape != hidden.shape for part in parts):
                raise UserError(f"{source}: its hidden states do not fit the run's batch and layers")
            state[layer] = (parts[0].to(device), parts[1].to(device))
