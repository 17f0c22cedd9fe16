"""What a model reads of a text that someone typed."""

import sys
from typing import NamedTuple

from highrank.data.make import words_of
from highrank.data.vocabulary import END_OF_LINE, UNKNOWN, Vocabulary

__all__ = ["Reading", "Word", "read_as", "read_text", "read_word"]


class Word(NamedTuple):
    """A word as typed and as read; None: left out."""

    typed: str
    read: str | None

    @property
    def is_unknown(self) -> bool:
        return self.read is None or (self.read == UNKNOWN != self.typed)


class Reading(NamedTuple):
    """``words`` of a text with the line ends between them, as ``tokens`` that begin with the start of a line.

    ``dropped`` words were beyond the longest text that is read.
    """

    tokens: list[int]
    words: list[Word]
    dropped: int

    @property
    def unknown(self) -> list[str]:
        """The words, each once, that are not in the vocabulary."""
        return list(dict.fromkeys(word.typed for word in self.words if word.is_unknown))


def read_text(text: str, vocabulary: Vocabulary, *, longest: int = sys.maxsize, keep: str = "first") -> Reading:
    """Words between white space as ``read_word`` reads them; a line's end is ``<eos>``, and empty lines are nothing.

    Of a text with more than ``longest`` words the first, or with ``keep="last"`` the last ones are read.
    """
    words = _words(text, vocabulary)
    dropped = max(0, len(words) - longest)
    if dropped:
        words = words[:longest] if keep == "first" else words[-longest:]
    start = [vocabulary.index[END_OF_LINE]] if END_OF_LINE in vocabulary.index else []
    return Reading(start + [vocabulary.index[word.read] for word in words if word.read is not None], words, dropped)


def read_word(typed: str, vocabulary: Vocabulary) -> list[Word]:
    """What stands between two spaces: as it is or in lower case, else, if the vocabulary knows a piece, cut as
    ``highrank data make`` cuts text. What the vocabulary does not know is ``<unk>``, or left out where it has none; a
    mark that was cut off and is not known is left out.
    """
    if known := _known(typed, vocabulary):
        return [Word(typed, known)]
    unknown = UNKNOWN if UNKNOWN in vocabulary.index else None
    pieces = [(piece, _known(piece, vocabulary)) for piece in words_of(typed, keep_case=True)]
    if not any(known for _, known in pieces):
        return [Word(typed, unknown)]
    return [Word(piece, known or (unknown if any(map(str.isalnum, piece)) else None)) for piece, known in pieces]


def read_as(vocabulary: Vocabulary) -> str:
    """What becomes of a word that is not in the vocabulary, for a message."""
    return f"read as {UNKNOWN}" if UNKNOWN in vocabulary.index else "left out"


def _words(text: str, vocabulary: Vocabulary) -> list[Word]:
    words: list[Word] = []
    for place, line in enumerate(text.splitlines() + [""] * text.endswith(("\n", "\r"))):
        if place and words and words[-1].read != END_OF_LINE and END_OF_LINE in vocabulary.index:
            words.append(Word("", END_OF_LINE))
        words += [word for typed in line.split() for word in read_word(typed, vocabulary)]
    return words


def _known(typed: str, vocabulary: Vocabulary) -> str | None:
    return next((word for word in (typed, typed.lower()) if word in vocabulary.index), None)
