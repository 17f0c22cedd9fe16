"""One reader under test: a folder of good files, a way to read it, and what it must hold.

A target reads as a user's command does, through the public functions, and returns the content in a form that can be
compared. Its damages are those of its files: deliberate ones first, then chance.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fuzzing.damage import Damage, chance, nasty_tree
from benchmarks.fuzzing.malice import deliberate

__all__ = ["Damaged", "Target", "Told", "content_of_corpus", "copied", "digest"]


@dataclass(frozen=True)
class Damaged:
    """A file of a target: its place in the folder, its kind, and whether a checksum (its own or the text's) guards it.

    What a checksum guards is read as it was, or not at all."""

    path: str
    kind: str
    guarded: bool = False


@dataclass(frozen=True)
class Target:
    """``good`` holds the good files; ``read`` is given a damaged copy and a function for notices; it returns content.

    ``accepted``: the contents that are right; ``expected`` says it of a damaged copy, where it depends on the damage.
    ``extra``: deliberate damages beside those of the files' kinds."""

    name: str
    good: Path
    files: tuple[Damaged, ...]
    read: Callable[[Path, Callable[[str], None]], object]
    accepted: tuple[object, ...] = ()
    expected: Callable[[Path], object] | None = None
    extra: tuple[tuple[Damaged, Damage], ...] = ()

    def listed(self, marker: Path) -> Iterator[tuple[Damaged, Damage]]:
        for file in self.files:
            for damage in deliberate(file.kind, (self.good / file.path).read_bytes(), marker):
                yield file, damage
        yield from self.extra

    def drawn(self, random: Random) -> tuple[Damaged, Damage]:
        if not self.files:
            return random.choice(self.extra)
        file = random.choice(self.files)
        good = (self.good / file.path).read_bytes()
        if random.random() < 0.4 and (damage := nasty_tree(file.kind, good, random)) is not None:
            return file, damage
        others = [(self.good / other.path).read_bytes() for other in self.files if other is not file]
        return file, chance(good, others, random)


def copied(target: Target, to: Path) -> Path:
    remove(to)
    shutil.copytree(target.good, to, symlinks=True)
    return to


def digest(content: object) -> str:
    """Of tensors, arrays, mappings of them, and plain values."""
    sha256 = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Mapping):
            for name in sorted(value):
                add(name)
                add(value[name])
        elif isinstance(value, Tensor):
            sha256.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha256.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            sha256.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            sha256.update(repr(value).encode("utf-8", "surrogatepass"))

    add(content)
    return sha256.hexdigest()


def content_of_corpus(corpus: Any) -> str:
    return digest(
        [digest({split: np.asarray(tokens) for split, tokens in corpus.tokens.items()}), corpus.vocabulary.words]
    )


def remove(path: Path) -> None:
    """Whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Told:
    """A display that passes on what it is told to say."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.message = notice

    def progress(self, *said: object, **more: object) -> None:
        return None
