"""A corpus from a text in one file, in a language with spaces between its words.

Text: lines that are not blank, in their order; lower case unless its case is kept; letters in Unicode's composed form.

Tokens: words, with the accents and vowel signs of their letters and with apostrophes and hyphens inside; numbers, with
their points and commas; every other character; and ``<unk>``.

Split: the first nine tenths of the lines are train, half of the rest each valid and test.

Vocabulary: ``<eos>``, ``<unk>``, and the most frequent words of train (at equal counts, the first to appear) that occur
in it more than once, or nothing would say what may stand for an ``<unk>``; every other word is ``<unk>``.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import groupby, islice
from pathlib import Path

from highrank.data.vocabulary import UNKNOWN
from highrank.errors import UserError
from highrank.files import install_folder, is_free, temporary_folder
from highrank.progress import SILENT, Display
from highrank.reading import file_size

__all__ = ["make_corpus", "words_of"]

FEWEST_LINES = 20
LONGEST_LINE_BYTES = 1 << 20
# Marks of byte order and soft hyphens are no text; a space of no width is one; underscores are no letters.
CLEANED = str.maketrans({"\ufeff": None, "\u00ad": None, "\u200b": " ", "_": " _ "})


def make_corpus(
    source: Path,
    target: Path,
    *,
    vocabulary_size: int = 10_000,
    keep_case: bool = False,
    display: Display = SILENT,
) -> Path:
    """Write train.txt, valid.txt and test.txt into the new folder ``target`` and return it.

    ``vocabulary_size``: at most so many words, ``<eos>`` and ``<unk>`` included; 0 keeps every word. The text is read
    two or three times, a line at a time.
    Raises UserError, one line: no such text, one that is not UTF-8 or has too few lines or too long ones, or a
    ``target`` that is there or cannot be written.
    """
    if vocabulary_size < 0 or vocabulary_size in (1, 2):
        raise UserError(f"the vocabulary: expected 3 words or more, or 0 for all, got {vocabulary_size}", exit_code=2)
    file_size(source)
    taken = UserError(f"{target}: exists already; give another folder with --out")
    if not is_free(target):
        raise taken
    count = 0
    for count, _ in enumerate(_lines(source), start=1):
        display.progress(f"reading {source.name}", count, None, unit="lines")
    if count < FEWEST_LINES:
        raise UserError(
            f"{source}: expected at least {FEWEST_LINES} lines with text, to be cut into three parts, got {count}; put "
            "each sentence or paragraph on a line of its own"
        )

    def sentences(task: str) -> Iterator[list[str]]:
        for number, line in enumerate(_lines(source)):
            display.progress(f"{task} {source.name}", number, count, unit="lines")
            yield words_of(line, keep_case=keep_case)

    train = count * 9 // 10
    lengths = {"train": train, "valid": (count - train) // 2, "test": None}
    known: set[str] | None = None
    if vocabulary_size:
        counts = Counter(word for words in islice(sentences("counting"), train) for word in words)
        del counts[UNKNOWN]
        known = {word for word, times in counts.most_common(vocabulary_size - 2) if times > 1}
    try:
        with temporary_folder(target.parent) as folder:
            rest = sentences("cutting")
            for split, length in lengths.items():
                with (folder / f"{split}.txt").open("w", encoding="utf-8", newline="\n") as file:
                    for words in islice(rest, length):
                        kept = words if known is None else [word if word in known else UNKNOWN for word in words]
                        file.write(" ".join(kept) + "\n")
            if not install_folder(folder, target):
                raise taken
    except OSError as error:
        raise UserError(f"cannot write the corpus to {target}: {error.strerror or error}") from error
    return target


def words_of(line: str, *, keep_case: bool = False) -> list[str]:
    """The tokens of a line of text, without its end."""
    text = (line if keep_case else line.lower()).translate(CLEANED)
    return _token().findall(unicodedata.normalize("NFC", text))  # a letter and its accent can be written in two ways


@cache
def _token() -> re.Pattern[str]:
    # Joiners stand inside words of Persian and of Indian languages.
    inside = [
        c in "\u200c\u200d" or unicodedata.category(c).startswith("M") for c in map(chr, range(sys.maxunicode + 1))
    ]
    runs = (list(run) for is_inside, run in groupby(range(len(inside)), inside.__getitem__) if is_inside)
    marks = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)  # ranges: a third of the time of single characters
    word = rf"\w+(?:[{marks}]+\w*)*"
    return re.compile(rf"{UNKNOWN}|{word}(?:(?:['’-]|(?<=\d)[.,](?=\d)){word})*|\S[{marks}]*")


def _lines(path: Path) -> Iterator[str]:
    """The lines that are not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE_BYTES + 1):
                number += 1
                if len(raw) > LONGEST_LINE_BYTES:
                    raise UserError(
                        f"{path}: line {number} is longer than {LONGEST_LINE_BYTES:,} bytes; put each sentence or "
                        "paragraph on a line of its own"
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} is not UTF-8 text: line {number}, byte {error.start} of it; convert it to UTF-8"
                    ) from error
                if line.translate(CLEANED).strip():
                    yield line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
