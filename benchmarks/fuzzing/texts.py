"""Readers of texts: the corpus, the cache of its word numbers, recipes and settings."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.fuzzing.damage import Damage
from benchmarks.fuzzing.pickles import payloads
from benchmarks.fuzzing.target import Damaged, Target, content_of_corpus, digest
from highrank.data import load_corpus
from highrank.data.make import make_corpus, words_of
from highrank.data.vocabulary import UNKNOWN
from highrank.files import file_sha256
from highrank.runs import (
    Config,
    find_recipe,
    parameter_count,
    parse_config,
    read_config,
    to_toml,
)

__all__ = ["SPLITS", "configurations", "corpus_cache", "corpus_text", "own_text"]

SPLITS = ("train", "valid", "test")


def corpus_cache(work: Path, text: Path) -> Target:
    good = work / "good-cache"
    load_corpus(text, cache=good)
    (entry,), (seen,) = (good / "encoded").iterdir(), (good / "seen").iterdir()

    def read(copy: Path, notice: Callable[[str], None]) -> str:
        return content_of_corpus(load_corpus(text, cache=copy))

    inside = f"encoded/{entry.name}"
    files = (
        *(Damaged(f"{inside}/{split}.npy", "npy", guarded=True) for split in SPLITS),
        Damaged(f"{inside}/vocabulary.txt", "words", guarded=True),
        Damaged(f"{inside}/meta.json", "json", guarded=True),
        Damaged(f"seen/{seen.name}", "json", guarded=True),
    )
    forged = []
    for what, content in {
        **{f"pickle: {name}": payload for name, payload in payloads(work / "marker").items()},
        "2^50 elements": _npy(b"", 1 << 50),
        "a folder's content": b"PK\x03\x04",
    }.items():

        def apply(path: Path, content: bytes = content) -> None:
            """The array, and its checksum in meta.json with it."""
            path.write_bytes(content)
            meta = json.loads((path.parent / "meta.json").read_text())
            for values, value in (("sha256_of_files", file_sha256(path)), ("file_bytes", len(content))):
                if path.name in meta.get(values, {}):
                    meta[values][path.name] = value
            (path.parent / "meta.json").write_text(json.dumps(meta))

        forged.append((files[0], Damage(f"forged with its checksum: {what}", apply)))
    return Target("corpus cache", good, files, read, extra=tuple(forged))


def _npy(data: bytes, length: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i4", "fortran_order": False, "shape": (length,)})
    return stream.getvalue() + data


def corpus_text(work: Path, text: Path) -> Target:
    def read(copy: Path, notice: Callable[[str], None]) -> str:
        return content_of_corpus(load_corpus(copy / "text", cache=copy / "cache"))

    def expected(copy: Path) -> object:
        """The definition, in its shortest form; it needs much memory for a large text."""
        index: dict[str, int] = {}
        tokens = {}
        for split in SPLITS:
            lines = (copy / "text" / f"{split}.txt").read_bytes().decode("utf-8-sig").split("\n")
            words = [word for line in lines[: -1 if lines[-1] == "" else None] for word in [*line.split(), "<eos>"]]
            tokens[split] = np.array([index.setdefault(word, len(index)) for word in words], np.int32)
        return digest([digest(tokens), tuple(index)])

    good = work / "good-text"
    shutil.copytree(text, good / "text")
    files = tuple(Damaged(f"text/{split}.txt", "text", guarded=True) for split in SPLITS)
    return Target("corpus text", good, files, read, expected=expected)


def own_text(work: Path, text: Path) -> Target:
    """``highrank data make``."""
    size = 9

    def read(copy: Path, notice: Callable[[str], None]) -> list[str]:
        target = make_corpus(copy / "text.txt", copy / "made", vocabulary_size=size)
        return [(target / f"{split}.txt").read_bytes().decode() for split in SPLITS]

    def expected(copy: Path) -> list[str]:
        """The definition, in its shortest form; it needs much memory for a large text."""
        text = (copy / "text.txt").read_bytes().decode("utf-8-sig")
        lines = [words for line in text.split("\n") if (words := words_of(line))]
        train = len(lines) * 9 // 10
        valid = train + (len(lines) - train) // 2
        counts = Counter(word for line in lines[:train] for word in line if word != UNKNOWN)
        kept = {word for word, times in counts.most_common(size - 2) if times > 1}
        written = [" ".join(word if word in kept else UNKNOWN for word in line) + "\n" for line in lines]
        return ["".join(part) for part in (written[:train], written[train:valid], written[valid:])]

    good = work / "own-text"
    good.mkdir()
    shutil.copy(text / "train.txt", good / "text.txt")
    return Target("own text", good, (Damaged("text.txt", "text", guarded=True),), read, expected=expected)


def configurations(work: Path, config: Config) -> Iterator[Target]:
    good = work / "recipes"
    good.mkdir()
    (good / "mine.toml").write_text(to_toml(config) + '\n[promise]\ncommand = "none"\n')

    def recipe(copy: Path, notice: Callable[[str], None]) -> str:
        config = read_config(find_recipe(str(copy / "mine.toml")), overrides=["train.seed=3"])
        parameter_count(config, 1000)
        return digest(to_toml(config).encode())

    yield Target("recipe", good, (Damaged("mine.toml", "toml"),), recipe)

    values = msgspec.to_builtins(config)
    good = work / "settings"
    good.mkdir()
    (good / "setting").write_text("train.lr=2.5")

    def setting(copy: Path, notice: Callable[[str], None]) -> str:
        """As an argument of the command line: bytes that are not UTF-8 come as lone surrogates, and NUL cannot come."""
        path = copy / "setting"
        passes = path.is_file() and path.stat().st_size < 1 << 17  # what systems let through
        given = path.read_bytes() if passes else b""
        text = given.replace(b"\0", b"").decode("utf-8", "surrogateescape")
        before = ("train.lr=", "train.seed=", "model.head=", "data.corpus=", "")[len(text) % 5]
        config = parse_config(values, source="fuzz", overrides=[text if text.startswith("train") else before + text])
        parameter_count(config, 1000)
        return digest(to_toml(config).encode())

    yield Target("--set", good, (Damaged("setting", "setting"),), setting)
