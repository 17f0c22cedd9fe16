"""Real text of a size that trains in seconds."""

from pathlib import Path

__all__ = ["write_small_text"]

VERSES = {"train": 120, "valid": 40, "test": 40}


def write_small_text(kjv: Path, folder: Path) -> Path:
    """The first verses of each split of the embedded corpus, which ``kjv`` holds, in the new ``folder``."""
    folder.mkdir()
    for split, verses in VERSES.items():
        lines = (kjv / f"{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:verses]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return folder
