"""Static evaluation: the exact mean loss over every predicted token."""

import time
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
from highrank.progress import SILENT, Display
from highrank.workers import ALONE, Workers

__all__ = ["ComponentUse", "Evaluation", "evaluate"]

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
    with evaluating(model):
        total = torch.zeros((), dtype=torch.float64, device=device)
        components = model.head.num_components if isinstance(model.head, MixtureOfSoftmaxes) else 1
        used = torch.zeros(2 * components + 1, dtype=torch.float64, device=device)
        done = 0
        for part, hidden_TBH in read_text(model, columns, segment, workers):
            statistics = model.head.statistics(hidden_TBH, part.target, reduction="none")
            total += statistics.loss.sum(dtype=torch.float64)
            used += _use(statistics)
            done += part.target.numel()
            if display is not SILENT:
                display.progress(what, done * workers.count, columns.predicted_tokens, total.item() / done)
        workers.add_up([total, used])
        predicted = columns.predicted_tokens
        means = (used / STEPS_PER_UNIT / predicted).tolist()
        use = ComponentUse(means[:components], means[components:-1], means[-1]) if components > 1 else None
        return Evaluation.of(total.item() / predicted, predicted, started, use)


def _use(statistics: MixtureStatistics) -> Tensor:
    """Sums over the tokens, in steps: of priors (K), posteriors (K) and prior entropies (1), in one tensor."""
    each = (statistics.prior, statistics.posterior, statistics.prior_entropy.unsqueeze(-1))
    return torch.cat([(part.double() * STEPS_PER_UNIT).round().flatten(0, -2).sum(0) for part in each])
