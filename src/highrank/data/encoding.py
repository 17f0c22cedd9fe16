"""Text to word numbers, in blocks, and the cache that makes the second start immediate.

Text rule: lines end at ``\\n``; words are what ``str.split()`` gives; ``<eos>`` follows every line, empty ones too;
the vocabulary is in order of first appearance over train, valid, test.

The cache folder holds ``encoded/<key>``, one folder for each text (the key is the hash of the three files' contents),
and ``seen/<corpus folder>.json``, which remembers the hash of files that have not changed since. An entry is hashed
before it is used: one that is not what was written is made again.
"""

import codecs
import contextlib
import hashlib
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from highrank.data.vocabulary import END_OF_LINE, Vocabulary
from highrank.errors import UserError
from highrank.files import file_sha256, install_folder, temporary_folder, write_bytes
from highrank.progress import SILENT, Display
from highrank.reading import file_size, read_json

__all__ = ["SPLITS", "Encoded", "cache_folder", "count_tokens", "encode_folder"]

SPLITS = ("train", "valid", "test")
# Part of the key: raise it whenever the same text would be encoded to other numbers or files.
ENCODING_VERSION = 3
BLOCK_BYTES = 1 << 20
# What goes on for longer without a space is no text, and would have to be kept whole.
LONGEST_WORD = 1 << 20
TOKEN_TYPE = np.dtype("<i4")
# A file written this shortly before a look at it may change again without its times changing: it is not remembered.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as numbers: per split the tokens (read-only, memory-mapped int32) and the hash of its file."""

    vocabulary: Vocabulary
    tokens: Mapping[str, NDArray[np.int32]]
    sha256: Mapping[str, str]


@dataclass
class _Reading:
    """How much of ``total`` bytes of text has been read."""

    task: str
    total: int
    display: Display
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.display.progress(self.task, self.done, self.total, unit="bytes")


def cache_folder() -> Path:
    """Where everything that can be made again is kept: ``$HIGHRANK_CACHE``, or the system's place for caches."""
    chosen = os.environ.get("HIGHRANK_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("highrank"))


def encode_folder(folder: Path, cache: Path | None = None, *, display: Display = SILENT) -> Encoded:
    """The three files of ``folder`` as numbers, from the cache if this very text was encoded before.

    Raises UserError, one line: a file missing, empty, unreadable or not UTF-8; more words than a vocabulary may hold; a
    cache that cannot be written.
    """
    cache = cache or cache_folder()
    seen = cache / "seen" / (hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32] + ".json")
    looked_ns = time.time_ns()
    signatures = {split: _signature(_split_file(folder, split)) for split in SPLITS}
    size = sum(signature[0] for signature in signatures.values())
    digests = _remembered(seen, signatures)
    if digests is None:
        looking = _Reading(f"looking at {folder.name}", size, display)
        digests = {split: _digest(_split_file(folder, split), looking) for split in SPLITS}
    encoded = _read_entry(_entry(cache, digests), digests)
    if encoded is None:
        try:
            encoded = _build_entry(folder, cache, _Reading(f"encoding {folder.name}", size, display))
        except OSError as error:
            raise UserError(
                f"cannot write the cache folder {cache} ({error.strerror or error}): "
                "set HIGHRANK_CACHE to a folder that can be written"
            ) from error
    for split, tokens in encoded.tokens.items():
        if len(tokens) == 0:  # nothing but a mark of byte order
            raise _empty(_split_file(folder, split))
    if looked_ns - max(max(signature[1:]) for signature in signatures.values()) > SETTLED_NS:
        _remember(seen, signatures, encoded.sha256)
    return encoded


def count_tokens(path: Path) -> int:
    """How many tokens the text rule gives for a file. Raises UserError if it cannot be read or is not UTF-8."""
    return sum(len(words) for words in _words(path, hashlib.sha256()))


def _split_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.txt"


def _signature(path: Path) -> list[int]:
    """What changes when a file does: size, time of writing, time of change. Raises UserError if there is no text."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise UserError(
            f"the corpus {path.parent} has no {path.name}: it needs train.txt, valid.txt and test.txt"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if status.st_size == 0:
        raise _empty(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _empty(path: Path) -> UserError:
    return UserError(f"{path} is empty: each split needs at least one line of text")


def _digest(path: Path, reading: _Reading) -> str:
    sha256 = hashlib.sha256()
    for block in _blocks(path):
        sha256.update(block)
        reading.add(len(block))
    return sha256.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _words(path: Path, sha256: "hashlib._Hash", reading: _Reading | None = None) -> Iterator[list[str]]:
    """The tokens of a file, one list for each block, in bounded memory even if it is all one line; feeds ``sha256``."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # a mark of byte order is no part of the first word
    rest = ""  # what follows the last place where a word surely ends
    line_open = False
    lines = 0
    read_bytes = 0
    for block in _blocks(path):
        sha256.update(block)
        read_bytes += len(block)
        if reading is not None:
            reading.add(len(block))
        try:
            text = rest + decoder.decode(block)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n") + 1
            offset = read_bytes - len(error.object) + error.start
            raise UserError(f"{path} is not UTF-8 text: line {line}, byte {offset}; convert it to UTF-8") from error
        lines += block.count(b"\n")
        rest = "" if not text or text[-1].isspace() else text.rsplit(maxsplit=1)[-1]
        whole = text[: len(text) - len(rest)]
        if len(rest) > LONGEST_WORD:
            raise UserError(f"{path}: a word of more than {LONGEST_WORD:,} characters in line {lines + 1}: not a text")
        if whole:
            line_open = not whole.endswith("\n")
        yield whole.replace("\n", f" {END_OF_LINE} ").split()
    if decoder.getstate()[0]:
        raise UserError(f"{path} is not UTF-8 text: it ends within a character (line {lines + 1}, byte {read_bytes})")
    if rest or line_open:  # the last line has no end of its own
        yield [*rest.split(), END_OF_LINE]


def _entry(cache: Path, digests: Mapping[str, str]) -> Path:
    content = "\n".join([str(ENCODING_VERSION), *(digests[split] for split in SPLITS)])
    return cache / "encoded" / hashlib.sha256(content.encode()).hexdigest()


def _build_entry(folder: Path, cache: Path, reading: _Reading) -> Encoded:
    """Encode the text as it is now into the cache. If another process was faster, its result is taken."""
    parent = cache / "encoded"
    with temporary_folder(parent) as temporary:
        # The hashes are of the very bytes that were encoded, even if a file changes meanwhile.
        digests = _write_entry(folder, temporary, reading)
        entry = _entry(cache, digests)
        while not install_folder(temporary, entry):
            winner = _read_entry(entry, digests)
            if winner is not None:
                return winner
            with temporary_folder(parent) as damaged, contextlib.suppress(FileNotFoundError):
                os.rename(entry, damaged / "entry")
    encoded = _read_entry(entry, digests)
    if encoded is None:
        raise OSError(f"what was written to {entry} cannot be read back")
    return encoded


def _write_entry(folder: Path, target: Path, reading: _Reading) -> dict[str, str]:
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__  # a new word gets the next number
    digests, counts = {}, {}
    for split in SPLITS:
        sha256 = hashlib.sha256()
        with (target / f"{split}.npy").open("wb") as file:
            file.write(_array_header(0))
            count = 0
            for words in _words(_split_file(folder, split), sha256, reading):
                file.write(np.fromiter(map(index.__getitem__, words), TOKEN_TYPE, len(words)).tobytes())
                count += len(words)
            file.seek(0)
            file.write(_array_header(count))
        digests[split], counts[split] = sha256.hexdigest(), count
    try:
        Vocabulary(tuple(index)).save(target / "vocabulary.txt")
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    meta = {
        "version": ENCODING_VERSION,
        "sha256": digests,
        "tokens": counts,
        "vocabulary_size": len(index),
        "sha256_of_files": {path.name: file_sha256(path) for path in target.iterdir()},
    }
    write_bytes(target / "meta.json", json.dumps(meta, indent=2).encode())
    return digests


def _array_header(count: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": TOKEN_TYPE.str, "fortran_order": False, "shape": (count,)})
    # numpy pads headers, so the final one fits over the one written before the count was known.
    assert len(header.getvalue()) == 128
    return header.getvalue()


def _read_entry(entry: Path, digests: Mapping[str, str]) -> Encoded | None:
    """The entry, or None if it is missing or damaged."""
    try:
        meta = read_json(entry / "meta.json")
        if meta["version"] != ENCODING_VERSION or meta["sha256"] != dict(digests):
            return None
        for name in (*(f"{split}.npy" for split in SPLITS), "vocabulary.txt"):
            file_size(entry / name)  # a plain file, or an error
            if file_sha256(entry / name) != meta["sha256_of_files"][name]:
                return None
        tokens = {split: np.lib.format.open_memmap(entry / f"{split}.npy", mode="r") for split in SPLITS}
        if any(array.shape != (meta["tokens"][split],) or array.dtype != TOKEN_TYPE for split, array in tokens.items()):
            return None
        vocabulary = Vocabulary.load(entry / "vocabulary.txt")
        if len(vocabulary) != meta["vocabulary_size"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    return Encoded(vocabulary, tokens, dict(digests))


def _remembered(seen: Path, signatures: Mapping[str, list[int]]) -> dict[str, str] | None:
    try:
        files = read_json(seen)
        if all(files[split]["signature"] == signatures[split] for split in SPLITS):
            return {split: str(files[split]["sha256"]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # unknown or damaged: the files are hashed again
    return None


def _remember(seen: Path, signatures: Mapping[str, list[int]], digests: Mapping[str, str]) -> None:
    files = {split: {"signature": signatures[split], "sha256": digests[split]} for split in SPLITS}
    content = json.dumps(files).encode()
    try:
        if not seen.is_file() or seen.stat().st_size != len(content) or seen.read_bytes() != content:
            seen.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(seen, content)
    except OSError:
        pass  # a cache that cannot be written costs a hash of the text at every start, nothing more
