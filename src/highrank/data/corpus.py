"""A corpus: three splits of text as word numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from highrank.data.encoding import encode_folder
from highrank.data.vocabulary import UNKNOWN, Vocabulary
from highrank.errors import UserError
from highrank.progress import SILENT, Display

__all__ = ["Corpus", "corpus_statistics", "load_corpus", "word_counts"]

COUNTING_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as numbers.

    ``tokens`` and ``sha256`` have one entry for each of "train", "valid" and "test": the word numbers (read-only,
    memory-mapped int32) and the hash of the file they came from.
    """

    name: str
    folder: Path
    vocabulary: Vocabulary
    tokens: Mapping[str, NDArray[np.int32]]
    sha256: Mapping[str, str]


def load_corpus(
    folder: str | Path, *, name: str | None = None, cache: str | Path | None = None, display: Display = SILENT
) -> Corpus:
    """Load the corpus in ``folder``: train.txt, valid.txt and test.txt, UTF-8.

    Lines are split on white space, ``<eos>`` follows every line, and the vocabulary is in order of first appearance
    over train, valid, test. The first time the text is encoded into the cache (``cache``, else ``$HIGHRANK_CACHE``,
    else the system's place); afterwards, as long as the files do not change, it is only opened.

    Memory: the vocabulary and one block of text, whatever the size of the files.
    Raises UserError, one line: the folder or a split is missing, a split is empty or not UTF-8, or the cache cannot
    be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"the corpus folder {folder} {found}: it should hold train.txt, valid.txt and test.txt")
    encoded = encode_folder(folder, None if cache is None else Path(cache), display=display)
    return Corpus(name or folder.resolve().name, folder, encoded.vocabulary, encoded.tokens, encoded.sha256)


def corpus_statistics(corpus: Corpus) -> dict[str, object]:
    """Figures of a corpus, ready for JSON.

    ``tokens``: tokens of each split, ``<eos>`` counted. ``vocabulary_size``: types over the three splits.
    ``out_of_vocabulary``: for valid and test, the share of tokens whose type does not occur in train.
    ``unknown``: the share of ``<unk>`` among the tokens of each split.
    """
    # Types are numbered in order of first appearance, train first: those of train are the first ones.
    train_types = int(corpus.tokens["train"].max()) + 1
    unknown = corpus.vocabulary.index.get(UNKNOWN, -1)
    return {
        "vocabulary_size": len(corpus.vocabulary),
        "tokens": {split: len(tokens) for split, tokens in corpus.tokens.items()},
        "out_of_vocabulary": {
            split: _share(corpus.tokens[split], train_types, len(corpus.vocabulary)) for split in ("valid", "test")
        },
        "unknown": {split: _share(tokens, unknown, unknown + 1) for split, tokens in corpus.tokens.items()},
    }


def word_counts(corpus: Corpus, split: str = "train") -> NDArray[np.int64]:
    """How often each word of the vocabulary (V) occurs in a split."""
    counts = np.zeros(len(corpus.vocabulary), dtype=np.int64)
    for block in _blocks(corpus.tokens[split]):
        counts += np.bincount(block, minlength=len(counts))
    return counts


def _share(tokens: NDArray[np.int32], low: int, high: int) -> float:
    """The share of tokens with low <= number < high."""
    count = sum(int(np.count_nonzero((block >= low) & (block < high))) for block in _blocks(tokens))
    return count / len(tokens)


def _blocks(tokens: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """To be counted one by one, because the text may be larger than memory."""
    for start in range(0, len(tokens), COUNTING_BLOCK):
        yield tokens[start : start + COUNTING_BLOCK]
