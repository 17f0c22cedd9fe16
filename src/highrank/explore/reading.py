"""What a model reads of a text that someone typed."""

from typing import NamedTuple

from highrank.data import Vocabulary
from highrank.data.vocabulary import END_OF_LINE, UNKNOWN

__all__ = ["Reading", "Word", "read_text"]


class Word(NamedTuple):
    """A word as typed and as read; None: left out, because the vocabulary has neither the word nor ``<unk>``."""

    typed: str
    read: str | None


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
        return list(dict.fromkeys(w.typed for w in self.words if w.read is None or (w.read == UNKNOWN != w.typed)))


def read_text(text: str, vocabulary: Vocabulary, *, longest: int, keep: str = "first") -> Reading:
    """Words between white space; a line's end is ``<eos>``, and empty lines are nothing.

    A word that the vocabulary knows only in lower case is read so. Of a text with more than ``longest`` words the
    first, or with ``keep="last"`` the last ones are read.
    """
    words = _words(text, vocabulary)
    dropped = max(0, len(words) - longest)
    if dropped:
        words = words[:longest] if keep == "first" else words[-longest:]
    start = [vocabulary.index[END_OF_LINE]] if END_OF_LINE in vocabulary.index else []
    return Reading(start + [vocabulary.index[word.read] for word in words if word.read is not None], words, dropped)


def _words(text: str, vocabulary: Vocabulary) -> list[Word]:
    words: list[Word] = []
    for place, line in enumerate(text.splitlines() + [""] * text.endswith(("\n", "\r"))):
        if place and words and words[-1].read != END_OF_LINE and END_OF_LINE in vocabulary.index:
            words.append(Word("", END_OF_LINE))
        words += [Word(typed, _read(typed, vocabulary)) for typed in line.split()]
    return words


def _read(typed: str, vocabulary: Vocabulary) -> str | None:
    for word in (typed, typed.lower(), UNKNOWN):
        if word in vocabulary.index:
            return word
    return None
