"""Static evaluation: the exact mean loss over every predicted token."""

import operator
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns
from highrank.evaluate.held_out import read_text
from highrank.functional import MixtureStatistics
from highrank.heads import MixtureOfSoftmaxes
from highrank.models import LanguageModel, evaluating
from highrank.perplexity import perplexity
from highrank.progress import SILENT, Display, Pace
from highrank.workers import ALONE, Workers

__all__ = ["ComponentUse", "Evaluation", "evaluate", "means_over_text"]

# What is summed of the components is rounded to such steps first: whole numbers, whose sum is exact in any order.
STEPS_PER_UNIT = 2.0**30


class ComponentUse(NamedTuple):
    """Means over the predicted tokens: of each component's prior and posterior, and of the prior's entropy."""

    mean_prior: list[float]
    mean_posterior: list[float]
    prior_entropy_nats: float


class Evaluation(NamedTuple):
    """loss_nats is the mean over ``tokens`` predictions and perplexity its exponential; components None: the head
    has no components (a mixture of contexts has none that predict)."""

    loss_nats: float
    perplexity: float
    tokens: int
    elapsed_s: float
    components: ComponentUse | None = None

    @classmethod
    def of(cls, loss_nats: float, tokens: int, started: float, components: ComponentUse | None = None) -> "Evaluation":
        return cls(loss_nats, perplexity(loss_nats), tokens, time.perf_counter() - started, components)

    def in_the_paper_way(self, batch: int) -> "Evaluation":
        """The same evaluation as the original code counts it: T - 1 predictions a column, divided by T."""
        length = self.tokens // batch + 1
        loss_nats = self.loss_nats * (length - 1) / length
        return self._replace(loss_nats=loss_nats, perplexity=perplexity(loss_nats))


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
    components = model.head.num_components if isinstance(model.head, MixtureOfSoftmaxes) else 1

    def score(hidden_TBH: Tensor, target_TB: Tensor) -> Tensor:
        statistics = model.head.statistics(hidden_TBH, target_TB, reduction="none")
        return torch.cat([statistics.loss.sum(dtype=torch.float64).unsqueeze(0), _use(statistics)])

    loss_nats, *used = means_over_text(
        model, columns, score, 2 * components + 2, segment=segment, what=what, display=display, workers=workers
    )
    used = [mean / STEPS_PER_UNIT for mean in used]
    use = ComponentUse(used[:components], used[components:-1], used[-1]) if components > 1 else None
    return Evaluation.of(loss_nats, columns.predicted_tokens, started, use)


@torch.no_grad()
def means_over_text(
    model: LanguageModel,
    columns: Columns,
    score: Callable[[Tensor, Tensor], Tensor],
    count: int,
    *,
    segment: int,
    what: str,
    display: Display,
    workers: Workers,
    shown: Callable[[Tensor], Tensor] = operator.itemgetter(0),
) -> list[float]:
    """Means over the predicted tokens, of which ``score`` gives the sums over a segment.

    It gets the hidden states (T, B, H) and targets (T, B), and returns ``count`` numbers in float64, of which ``shown``
    is the loss in nats for the display. The other arguments are those of ``evaluate``.
    """
    total = torch.zeros(count, dtype=torch.float64, device=next(model.parameters()).device)
    done, reading = 0, Pace()
    with evaluating(model):
        for part, hidden_TBH in read_text(model, columns, segment or max(1, 1024 // columns.batch), workers):
            total += score(hidden_TBH, part.target)
            done += part.target.numel()
            if display is not SILENT and reading.is_due():
                display.progress(what, done * workers.count, columns.predicted_tokens, shown(total).item() / done)
    workers.add_up([total])
    predicted = columns.predicted_tokens
    display.progress(what, predicted, predicted, shown(total).item() / predicted)
    return [each / predicted for each in total.tolist()]


def _use(statistics: MixtureStatistics) -> Tensor:
    """Sums over the tokens, in steps: of priors (K), posteriors (K) and prior entropies (1), in one tensor."""
    each = (statistics.prior, statistics.posterior, statistics.prior_entropy.unsqueeze(-1))
    return torch.cat([(part.double() * STEPS_PER_UNIT).round().flatten(0, -2).sum(0) for part in each])
