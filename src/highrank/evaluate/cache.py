"""The neural cache: a word that came lately after a hidden state like this one is likelier to come now.

With p of the model and, over the last ``window`` positions j, whose hidden states h_j were followed by the words x_j,

    p_cache(x) = sum_j softmax_j(theta * h . h_j) * 1{x_j = x}
    p(x)       = (1 - share) * p_model(x) + share * p_cache(x)

Nothing is learned. Source: Grave, Joulin, Usunier 2016 (arXiv 1612.04426), the linear mixture of its section 3; the
"pointer" of the AWD-LSTM's code.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns
from highrank.errors import UserError
from highrank.evaluate.held_out import hidden_states
from highrank.evaluate.perplexity import Evaluation
from highrank.models import LanguageModel, evaluating
from highrank.progress import SILENT, Display

__all__ = ["DEFAULT_WINDOW", "CacheSettings", "evaluate_with_cache", "tune_cache"]

DEFAULT_WINDOW = 500  # of the AWD-LSTM's code for Penn Treebank
# Tried by ``tune_cache``, each with each.
THETAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)


class CacheSettings(NamedTuple):
    """``window``: positions in the cache; ``theta``: how sharply like and unlike hidden states are told apart;
    ``share``: of the cache in the mixture."""

    window: int
    theta: float
    share: float


def evaluate_with_cache(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    settings: CacheSettings,
    *,
    what: str = "text",
    display: Display = SILENT,
) -> tuple[Evaluation, Evaluation]:
    """The exact mean loss over every predicted token, with the cache and, from the same pass, without.

    The text is walked as by ``evaluate`` at batch 1; each word enters the cache when it has been scored.
    Memory beside that: ``window`` hidden states, and some tables of 1,024 x (``window`` + 1,024) numbers.
    Raises UserError for settings out of their range.
    """
    _check(settings)
    started = time.perf_counter()
    shares = (settings.share, 0.0)
    [losses] = _mean_losses(model, tokens, settings.window, (settings.theta,), shares, what, display)
    with_it, without = (Evaluation.of(loss, len(tokens) - 1, started) for loss in losses)
    return with_it, without


def tune_cache(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    window: int = DEFAULT_WINDOW,
    what: str = "text",
    display: Display = SILENT,
) -> tuple[CacheSettings, float]:
    """The ``theta`` and ``share`` of the lowest loss over a text, of a grid of both, and that loss. One pass."""
    _check(CacheSettings(window, THETAS[0], SHARES[0]))
    losses = _mean_losses(model, tokens, window, THETAS, SHARES, what, display)
    best = min((losses[row][column], row, column) for row in range(len(THETAS)) for column in range(len(SHARES)))
    if not math.isfinite(best[0]):
        raise UserError(f"{what}: the loss is {best[0]}: there is nothing to tune")
    return CacheSettings(window, THETAS[best[1]], SHARES[best[2]]), best[0]


def _mean_losses(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    window: int,
    thetas: Sequence[float],
    shares: Sequence[float],
    what: str,
    display: Display,
) -> list[list[float]]:
    """For every theta the losses with every share."""
    columns = Columns(tokens, 1, what=what)
    total: Tensor | None = None
    done = 0
    for nats_T, cached_ST in _log_probs(model, tokens, window, thetas, what):
        share = nats_T.new_tensor(shares, dtype=torch.float64).view(-1, 1)
        with_model = torch.log1p(-share) - nats_T.double()
        losses = -torch.logaddexp(with_model, share.log() + cached_ST.double().unsqueeze(1)).sum(-1)
        total = losses if total is None else total + losses
        done += len(nats_T)
        display.progress(what, done, columns.predicted_tokens, losses.min().item() / len(nats_T))
    assert total is not None  # the columns have a prediction at least
    means: list[list[float]] = (total / done).tolist()
    return means


@torch.no_grad()
def _log_probs(
    model: LanguageModel, tokens: NDArray[np.int32], window: int, thetas: Sequence[float], what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of segment after segment: -log p_model (T), and log p_cache for each theta (S, T). T = time steps."""
    with evaluating(model):
        kept_CH, kept_C = None, None  # C = positions in the cache
        for segment, hidden_TH in hidden_states(model, tokens, what):
            target_T = segment.target[:, 0]
            nats_T = model.head.statistics(hidden_TH, target_T, reduction="none").loss
            keys_JH = hidden_TH if kept_CH is None else torch.cat([kept_CH, hidden_TH])
            words_J = target_T if kept_C is None else torch.cat([kept_C, target_T])
            place_T1 = torch.arange(len(words_J) - len(target_T), len(words_J), device=target_T.device).unsqueeze(1)
            place_J = torch.arange(len(words_J), device=target_T.device)
            in_cache_TJ = (place_J < place_T1) & (place_J >= place_T1 - window)
            likeness_TJ = (hidden_TH @ keys_JH.T).masked_fill_(~in_cache_TJ, -torch.inf)
            other_TJ = words_J != target_T.unsqueeze(1)
            cached_ST = []
            for theta in thetas:
                scaled_TJ = theta * likeness_TJ
                all_T = scaled_TJ.logsumexp(1)
                same_T = scaled_TJ.masked_fill_(other_TJ, -torch.inf).logsumexp(1)
                cached_ST.append(same_T - all_T)
            cached = torch.stack(cached_ST)
            if kept_CH is None:  # before the first word the cache is empty, and the model is all there is
                cached[:, 0] = -nats_T[0]
            yield nats_T, cached
            kept_CH, kept_C = keys_JH[-window:], words_J[-window:]


def _check(settings: CacheSettings) -> None:
    if settings.window < 1:
        raise UserError(f"window: expected at least 1 position, got {settings.window}", exit_code=2)
    if not 0 < settings.theta < math.inf:
        raise UserError(f"theta: expected a number above 0, got {settings.theta}", exit_code=2)
    if not 0 <= settings.share < 1:
        raise UserError(f"share: expected a number from 0 to below 1, got {settings.share}", exit_code=2)
