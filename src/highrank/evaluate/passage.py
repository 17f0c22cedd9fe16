"""A passage of text, word by word: what a model predicts there, as it was trained and once it has learnt on the way."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns
from highrank.errors import UserError
from highrank.evaluate.adaptation import Adaptation, DynamicSettings, GradientStatistics
from highrank.evaluate.held_out import read_text
from highrank.evaluate.prediction import Prediction, joined, predict_next
from highrank.models import LanguageModel, evaluating
from highrank.progress import SILENT, Display

__all__ = ["Passage", "line_start", "read_passage"]

SEGMENT = 512


class Passage(NamedTuple):
    """N words of a text, the first of them at position ``start``.

    ``words`` are their numbers. ``before``: the predictions (N) by the trained weights, each with all the text before
    the word. ``after``: by weights that have learnt from that text too, as dynamic evaluation scores it (None: not
    asked for). Both on the CPU, with ``met`` for the words that came.
    """

    start: int
    words: list[int]
    before: Prediction
    after: Prediction | None


def line_start(tokens: NDArray[np.int32], wanted: int, end_of_line: int | None, *, within: int = 200) -> int:
    """The first position from ``wanted`` on that begins a line, or ``wanted`` if none does ``within`` so many words.

    At least 1: the first word of a text is not predicted. At most the last word, however short the text.
    """
    wanted = min(max(1, wanted), len(tokens) - 1)
    ends = np.flatnonzero(tokens[wanted - 1 : wanted - 1 + within] == end_of_line)
    first = wanted + int(ends[0]) if len(ends) else wanted
    return first if first < len(tokens) else wanted


def read_passage(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    start: int,
    length: int,
    top: int = 5,
    adaptation: tuple[GradientStatistics, DynamicSettings] | None = None,
    display: Display = SILENT,
) -> Passage:
    """The predictions of ``tokens[start : start + length]``, each listing its ``top`` words.

    All the text before the passage is read too: as context, and with ``adaptation`` to learn from, which takes a step
    of training for each of its segments. Raises UserError if the text has no word there, or if the
    loss is lost by learning.
    """
    if not 1 <= start < len(tokens):
        raise UserError(f"the passage: expected a position from 1 to {len(tokens) - 1}, got {start}")
    stop = min(start + length, len(tokens))
    columns = Columns(tokens[:stop], 1, what="the passage")
    before = joined(_static(model, columns, start, top), [stop - start], "cpu")
    after = None
    if adaptation is not None:
        after = joined(_adapted(model, columns, start, top, *adaptation, display), [stop - start], "cpu")
    return Passage(start, [int(word) for word in tokens[start:stop]], before, after)


@torch.no_grad()
def _static(model: LanguageModel, columns: Columns, start: int, top: int) -> list[Prediction]:
    parts = []
    with evaluating(model):
        for segment, hidden_T1H in read_text(model, columns, SEGMENT):
            parts += _predictions(model, hidden_T1H, segment.target, segment.start, start, top)
    return parts


def _adapted(
    model: LanguageModel,
    columns: Columns,
    start: int,
    top: int,
    statistics: GradientStatistics,
    settings: DynamicSettings,
    display: Display,
) -> list[Prediction]:
    device = next(model.parameters()).device
    parts = []
    with Adaptation(model, statistics, settings) as adaptation:
        for segment in columns.segments(settings.bptt):
            segment = segment.to(device)
            if segment.start + len(segment.target) >= start:
                with torch.no_grad():
                    hidden = model.backbone(segment.tokens, adaptation.state).hidden
                parts += _predictions(model, hidden, segment.target, segment.start, start, top)
            adaptation.step(segment.tokens, segment.target)
            done = segment.start + len(segment.target)
            display.progress("passage, learning", done, columns.predicted_tokens, adaptation.loss_nats())
    return parts


def _predictions(
    model: LanguageModel, hidden: Tensor, target: Tensor, at: int, start: int, top: int
) -> list[Prediction]:
    """Of the words of a segment that lie in the passage; the target at ``at`` is the word at ``at`` + 1."""
    skip = max(0, start - 1 - at)
    if skip >= len(target):
        return []
    part = predict_next(model, hidden[skip:, 0], target=target[skip:, 0], top=top)
    return [part]
