"""Dynamic evaluation: the model goes on learning from the text it has just been scored on.

One pass over the training text sums the squared gradients of every weight; ``adaptation`` has the rule by which the
weights then move. Source: Krause et al. 2017 (arXiv 1709.07432).
"""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import SHORTEST_TRAINING_COLUMN, Columns
from highrank.evaluate.adaptation import Adaptation, DynamicSettings, GradientStatistics
from highrank.evaluate.perplexity import Evaluation
from highrank.models import LanguageModel, State, detached, seed_dropouts, without_dropout
from highrank.progress import SILENT, Display, Pace
from highrank.workers import ALONE, Workers

__all__ = ["dynamic_evaluate", "gradient_statistics"]


def gradient_statistics(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    batch: int = 100,
    bptt: int = 5,
    weight_dropout_seed: int | None = None,
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> GradientStatistics:
    """Squared gradients of the mean loss of each segment of the training text, without dropout, weights fixed.

    The text is walked in ``batch`` columns with the state carried. Of several ``workers`` each carries the state
    through the whole text, and has the gradients of its share of the segments. Source: Krause et al. 2017, section 4.
    """
    columns = Columns(tokens, batch, what="train.txt", shortest=SHORTEST_TRAINING_COLUMN)
    named = dict(model.named_parameters())
    parameters: list[Tensor] = list(named.values())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    state = model.initial_state(batch)
    loss_sum = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    segments, done, reading = 0, 0, Pace()
    with without_dropout(model, keep_weight_dropout=weight_dropout_seed is not None):
        for segment in columns.segments(bptt):
            if len(segment.tokens) == 1 and bptt > 1:
                break  # the original leaves out a last segment of one prediction
            segment = segment.to(loss_sum.device)
            if weight_dropout_seed is not None:
                seed_dropouts(model, weight_dropout_seed, segments, 0)
            segments += 1
            if workers.owner(segments) != workers.rank:
                with torch.no_grad():
                    state = model.backbone(segment.tokens, state).state
                continue
            loss, gradients, state = _score(model, parameters, segment.tokens, segment.target, state)
            torch._foreach_addcmul_(squares, gradients, gradients)
            done += segment.target.numel()
            loss_sum += loss.double() * segment.target.numel()
            if display is not SILENT and reading.is_due():
                display.progress(
                    "gradient statistics", done * workers.count, columns.predicted_tokens, loss_sum.item() / done
                )
    workers.add_up(squares)
    return GradientStatistics(dict(zip(named, squares, strict=True)), segments)


def _score(
    model: LanguageModel, parameters: list[Tensor], tokens: Tensor, target: Tensor, state: State
) -> tuple[Tensor, tuple[Tensor, ...], State]:
    """Mean loss of a segment (T, B) in nats, its gradients, and the state after it."""
    output = model(tokens, target, state)
    gradients = torch.autograd.grad(output.loss, parameters)
    return output.loss.detach(), gradients, detached(output.state)


def dynamic_evaluate(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    statistics: GradientStatistics,
    settings: DynamicSettings,
    *,
    what: str = "dynamic evaluation",
    display: Display = SILENT,
) -> Evaluation:
    """Mean loss over every predicted token of a text, each scored before the model learns from it. Batch 1.

    The weights of ``model`` are as they were when this returns. Raises UserError if the loss is lost on the way
    (a learning rate too high).
    """
    started = time.perf_counter()
    columns = Columns(tokens, 1, what=what)
    device = next(model.parameters()).device
    done, reading = 0, Pace()
    with Adaptation(model, statistics, settings) as adaptation:
        for segment in columns.segments(settings.bptt):
            segment = segment.to(device)
            adaptation.step(segment.tokens, segment.target)
            done += segment.target.numel()
            if reading.is_due():  # a lost loss is told now, not at the end
                display.progress(what, done, columns.predicted_tokens, adaptation.loss_nats())
        loss_nats = adaptation.loss_nats()
    display.progress(what, done, done, loss_nats)
    return Evaluation.of(loss_nats, done, started)
