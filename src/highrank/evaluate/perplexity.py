"""Static evaluation: the exact mean loss over every predicted token."""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from highrank.data.batches import Columns
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.workers import ALONE, Workers

__all__ = ["Evaluation", "evaluate"]


class Evaluation(NamedTuple):
    """loss_nats is the mean over ``tokens`` predictions and perplexity its exponential."""

    loss_nats: float
    perplexity: float
    tokens: int
    elapsed_s: float

    @classmethod
    def of(cls, loss_nats: float, tokens: int, started: float) -> "Evaluation":
        # exp overflows beyond 709 nats, where a perplexity says nothing anyway.
        return cls(loss_nats, math.exp(min(loss_nats, 700.0)), tokens, time.perf_counter() - started)

    def in_the_paper_way(self, batch: int) -> "Evaluation":
        """The same evaluation as the original code counts it: T - 1 predictions a column, divided by T."""
        length = self.tokens // batch + 1
        loss_nats = self.loss_nats * (length - 1) / length
        return self._replace(loss_nats=loss_nats, perplexity=math.exp(min(loss_nats, 700.0)))


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    batch: int = 1,
    segment: int = 0,
    what: str = "text",
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> Evaluation:
    """Mean loss of ``model`` over a text, with the state carried through.

    With ``batch`` 1 every token but the first is predicted with all the text before it; a larger batch is faster, cuts
    the context at the column borders and drops the remainder. ``segment`` (time steps at once; 0 chooses) changes
    speed and memory, not the result. Of several ``workers`` each carries the state through the whole text, and scores
    its share of the segments.
    """
    started = time.perf_counter()
    columns = Columns(tokens, batch, what=what)
    segment = segment or max(1, 1024 // batch)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        state = model.initial_state(batch)
        total = torch.zeros((), dtype=torch.float64, device=device)
        done = 0
        for index, part in enumerate(columns.segments(segment)):
            if workers.owner(index) != workers.rank:
                state = model.backbone(part.tokens.to(device), state).state
                continue
            output = model(part.tokens.to(device), part.target.to(device), state, reduction="none")
            state = output.state
            total += output.loss.sum(dtype=torch.float64)
            done += part.target.numel()
            if display is not SILENT:
                display.progress(what, done * workers.count, columns.predicted_tokens, total.item() / done)
        workers.add_up([total])
        predicted = columns.predicted_tokens
        return Evaluation.of(total.item() / predicted, predicted, started)
    finally:
        model.train(training)
