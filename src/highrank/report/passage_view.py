"""A passage as the page shows it: its words with their surprisal, and what stands behind each for the script."""

import math
from typing import Any, NamedTuple

from torch import Tensor

from highrank.data import Vocabulary
from highrank.data.vocabulary import END_OF_LINE
from highrank.evaluate import Passage, Prediction

__all__ = ["Word", "passage_data", "passage_words"]

COMPONENT_WORDS = 3
FULL_COLOUR_NATS = 12.0


class Word(NamedTuple):
    """``shade``: from 0, expected, to 1, a surprise. ``ends``: the end of a line, after which a new one begins."""

    text: str
    surprisal: float
    shade: float
    ends: bool


def passage_words(passage: Passage, vocabulary: Vocabulary) -> list[Word]:
    """Each with the surprisal of the trained model."""
    assert passage.before.met is not None
    surprisal = passage.before.met.surprisal.tolist()
    words = vocabulary.decode(passage.words)
    return [
        Word("¶" if word == END_OF_LINE else word, value, _shade(value), word == END_OF_LINE)
        for word, value in zip(words, surprisal, strict=True)
    ]


def passage_data(passage: Passage, vocabulary: Vocabulary) -> dict[str, Any]:
    """``words``: a list of texts, to which all others are indices. ``passage``: the words that came. ``before``,
    ``after`` (or null): for each of them [surprisal, [[word, probability]], [[prior, posterior, [[word, probability]]]
    by component]]. ``full``: the surprisal that takes the whole colour. Surprisals are in nats."""
    numbers: dict[int, int] = {}

    def index(word: int) -> int:
        return numbers.setdefault(word, len(numbers))

    sides = [None if side is None else _side(side, index) for side in (passage.before, passage.after)]
    shown = [index(word) for word in passage.words]
    return {
        "passage": shown,
        "before": sides[0],
        "after": sides[1],
        "words": vocabulary.decode(numbers),
        "full": FULL_COLOUR_NATS,
    }


def _side(prediction: Prediction, index: Any) -> list[Any]:
    assert prediction.met is not None
    component_words = prediction.component_words[..., :COMPONENT_WORDS]
    component_log_prob = prediction.component_log_prob[..., :COMPONENT_WORDS]
    several = prediction.prior.shape[-1] > 1
    found = []
    for position in range(len(prediction.words)):
        components = [
            [
                _short(prediction.prior[position, k]),
                _short(prediction.met.posterior[position, k]),
                _listed(component_words[position, k], component_log_prob[position, k], index),
            ]
            for k in range(prediction.prior.shape[-1])
        ]
        found.append(
            [
                _short(prediction.met.surprisal[position]),
                _listed(prediction.words[position], prediction.log_prob[position], index),
                components if several else [],
            ]
        )
    return found


def _listed(words: Tensor, log_prob: Tensor, index: Any) -> list[list[float]]:
    return [
        [index(word), float(f"{math.exp(value):.3g}")]
        for word, value in zip(words.tolist(), log_prob.tolist(), strict=True)
    ]


def _short(number: Tensor) -> float:
    return float(f"{float(number):.4g}")


def _shade(surprisal: float) -> float:
    return round(min(max(surprisal, 0.0), FULL_COLOUR_NATS) / FULL_COLOUR_NATS, 3)
