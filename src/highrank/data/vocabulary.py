"""Words and their numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from highrank.errors import UserError
from highrank.files import write_bytes
from highrank.reading import read_bytes

__all__ = ["END_OF_LINE", "UNKNOWN", "Vocabulary"]

END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"
# A word costs some hundred bytes of memory. The largest vocabularies in use take a few megabytes on disk.
VOCABULARY_LIMIT_BYTES = 1 << 26


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """The words of a corpus, each with its number: its place in ``words``.

    Raises UserError if a word stands in it twice.
    """

    words: tuple[str, ...]
    index: Mapping[str, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        index = {word: number for number, word in enumerate(self.words)}
        if len(index) != len(self.words):
            twice = next(word for number, word in enumerate(self.words) if index[word] != number)
            raise UserError(f"a vocabulary needs each word once, but {twice!r} stands in it twice")
        object.__setattr__(self, "index", index)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words)"

    def encode(self, words: Iterable[str]) -> list[int]:
        """The numbers of ``words``; a word that is not in the vocabulary becomes ``<unk>``.

        Raises UserError naming the word if the vocabulary has no ``<unk>``.
        """
        unknown = self.index.get(UNKNOWN)
        numbers = []
        for word in words:
            number = self.index.get(word, unknown)
            if number is None:
                raise UserError(f"the word {word!r} is not in the vocabulary, which has no {UNKNOWN} for such words")
            numbers.append(number)
        return numbers

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words with these numbers. Raises UserError for a number outside the vocabulary."""
        words = []
        for number in map(int, ids):
            if not 0 <= number < len(self.words):
                raise UserError(f"word number {number} is outside the vocabulary of {len(self)} words")
            words.append(self.words[number])
        return words

    def difference(self, other: "Vocabulary") -> str:
        """How the words of ``other`` differ from these, in a few words; empty if they do not."""
        changes = (
            ("new", [word for word in other.words if word not in self.index]),
            ("missing", [word for word in self.words if word not in other.index]),
        )
        said = [
            f"{words[0]!r} is {what}" if len(words) == 1 else f"{len(words):,} words are {what}, {words[0]!r} the first"
            for what, words in changes
            if words
        ]
        if not said and self.words != other.words:
            return "the same words stand in another order"
        return "; ".join(said)

    def save(self, path: str | Path) -> None:
        """Write one word a line (UTF-8). The file is either the old one or all of the new one, never a part.

        Raises UserError for what ``load`` would not read: a word with a line break, or more than 64 MiB.
        """
        for word in self.words:
            if "\n" in word:
                raise UserError(f"a word that holds a line break cannot be saved one word a line: {word!r}")
        content = "".join(word + "\n" for word in self.words).encode()
        if len(content) > VOCABULARY_LIMIT_BYTES:
            raise UserError(
                f"a vocabulary of {len(self):,} words, {len(content):,} bytes, is over the limit of "
                f"{VOCABULARY_LIMIT_BYTES:,} bytes: write {UNKNOWN} for rare words"
            )
        write_bytes(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what ``save`` wrote. Raises UserError if the file is missing, cut off, over 64 MiB or not UTF-8."""
        try:
            content = read_bytes(Path(path), VOCABULARY_LIMIT_BYTES)
        except UserError as error:
            raise UserError(f"cannot read the vocabulary {error}") from error
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"the vocabulary {path} is not UTF-8 text (at byte {error.start})") from error
        if text and not text.endswith("\n"):
            raise UserError(f"the vocabulary {path} is cut off: its last line has no end")
        # Not splitlines(): a word may hold one of the other characters that it takes for line ends.
        return cls(tuple(text.split("\n")[:-1]))
