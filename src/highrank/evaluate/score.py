"""The surprisal of every token of a text, and what the components have to do with it."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data import Vocabulary
from highrank.data.batches import Columns
from highrank.data.typed import read_word
from highrank.data.vocabulary import END_OF_LINE
from highrank.errors import UserError
from highrank.evaluate.held_out import hidden_states
from highrank.models import LanguageModel, evaluating
from highrank.progress import SILENT, Display

__all__ = ["Score", "ScoredWord", "Surprisal", "score_text", "surprisal"]


class Surprisal(NamedTuple):
    """Of every token of a text but the first, on the CPU. nats (N): -log P(token | all tokens before it); prior (N, K):
    P(component | context); posterior (N, K): P(component | context, token). K is 1 for a head with one softmax."""

    nats: Tensor
    prior: Tensor
    posterior: Tensor


class ScoredWord(NamedTuple):
    """``typed``, the ``place``-th word of its line (pieces of a word share a place; a line's end has the next one), and
    what it was ``read`` as. nats None: left out, or the first of a text, of which nothing is predicted."""

    line: int
    place: int
    typed: str
    read: str | None
    nats: float | None


class Score(NamedTuple):
    """Every word of a text; prior and posterior (N, K) as of ``Surprisal``, of the N words with nats in their order."""

    words: list[ScoredWord]
    prior: Tensor
    posterior: Tensor

    @property
    def nats(self) -> list[float]:
        return [word.nats for word in self.words if word.nats is not None]


@torch.no_grad()
def surprisal(
    model: LanguageModel, tokens: NDArray[np.int32], *, what: str = "text", display: Display = SILENT
) -> Surprisal:
    """What ``evaluate`` takes the mean of, token by token. Memory: blocks of tokens, and O(N * K).

    Raises UserError for a text of fewer than two tokens.
    """
    total = Columns(tokens, 1, what=what).predicted_tokens
    parts = []
    with evaluating(model):
        for segment, hidden_TH in hidden_states(model, tokens, what):
            statistics = model.head.statistics(hidden_TH, segment.target[:, 0], reduction="none")
            parts.append(Surprisal(statistics.loss.cpu(), statistics.prior.cpu(), statistics.posterior.cpu()))
            display.progress(what, segment.start + len(segment.target), total)
    return Surprisal(*map(torch.cat, zip(*parts, strict=True)))


def score_text(
    model: LanguageModel, vocabulary: Vocabulary, text: str, *, by_line: bool = False, display: Display = SILENT
) -> Score:
    """Every word of ``text`` and every line's end; blank lines are nothing. The text begins as a line does.

    ``by_line``: each line as if there were none before it. Raises UserError if nothing of the text can be predicted.
    """
    lines = [
        [*_words(number, line.split(), vocabulary)]
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    pieces = lines if by_line else [[word for line in lines for word in line]]
    start = [vocabulary.index[END_OF_LINE]] if END_OF_LINE in vocabulary.index else []
    words, found = [], []
    for done, piece in enumerate(pieces, start=1):
        read = [vocabulary.index[word.read] for word in piece if word.read is not None]
        unpredicted = 1 - len(start)  # the first word, if no line's end can stand before it
        nats = [None] * min(unpredicted, len(read))
        if len(start + read) > 1:
            tokens = np.array(start + read, dtype=np.int32)
            found.append(surprisal(model, tokens, what="scoring", display=SILENT if by_line else display))
            nats += found[-1].nats.tolist()
        values = iter(nats)
        words += [word if word.read is None else word._replace(nats=next(values)) for word in piece]
        if by_line:
            display.progress("scoring", done, len(pieces), unit="lines")
    if not found:
        raise UserError("the text: expected at least one word that the model can predict, got none")
    return Score(words, torch.cat([each.prior for each in found]), torch.cat([each.posterior for each in found]))


def _words(line: int, typed: list[str], vocabulary: Vocabulary) -> list[ScoredWord]:
    words = [
        ScoredWord(line, place, *word, nats=None)
        for place, each in enumerate(typed, start=1)
        for word in read_word(each, vocabulary)
    ]
    if END_OF_LINE in vocabulary.index:
        words.append(ScoredWord(line, len(typed) + 1, "", END_OF_LINE, None))
    return words
