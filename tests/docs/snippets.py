"""The fenced blocks of a Markdown page, run in order as a reader would run them, in a copy of the source.

A block of ``bash`` or ``python`` runs as it stands. Comments on the lines before it say what a test does otherwise:

    <!-- slow: why -->                       it runs in ``make test-slow``, not in ``make test``
    <!-- first: code -->                     Python that runs before it: names and files that the page leaves open
    <!-- in place of: FIRST -> 127.0.0.1 --> what the reader fills in, or has more of: the one is read as the other
    <!-- run with: --set train.epochs=1 -->  these words are added to each training command of the block or, where it
                                             has none, to each highrank command: a smaller model, less text
    <!-- run with: make demo + ARGS=... -->  these are added to the commands that begin so
    <!-- printed: by the block before -->    the block is what the one before it printed, to the letter

``in place of`` and ``run with`` have one entry a line. What they put in may hold $VARIABLES, and after ``->`` the name
of a file with stars in it, as a shell would complete them.

A block of any language with a ``title`` is a file that the reader writes; one of another language without a title is
only shown. How each program is run stands in ``programs.py``.
"""

import contextlib
import glob
import io
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.docs.programs import run_command, run_together

__all__ = ["ROOT", "Block", "blocks", "run"]

ROOT = Path(__file__).resolve().parents[2]
KINDS = "slow|first|in place of|run with|printed"
MARK = rf"<!-- ({KINDS}):\s+((?:(?!-->).)*?)\s*-->"
FENCED = re.compile(
    rf"^((?:<!-- (?:{KINDS}):(?:(?!-->).)*-->\n+)*)^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SHOWN = ("", "text", "json", "toml")
TRAINING = (["highrank", "train"], ["highrank", "run"])


@dataclass(frozen=True)
class Block:
    place: str  # page:line
    marks: dict[str, str]  # the words of each, by its kind
    language: str
    title: str
    text: str

    @property
    def slow(self) -> bool:
        return "slow" in self.marks

    @cached_property
    def replaced(self) -> list[tuple[str, str]]:
        """What stands in the block, and what a test reads in its place."""
        entries = [line.split(" -> ") for line in self.marks.get("in place of", "").splitlines()]
        assert all(len(entry) == 2 and entry[0] in self.text for entry in entries), f"{self.place}: in place of what?"
        return [(old, new) for old, new in entries]

    @cached_property
    def added(self) -> list[tuple[list[str], str]]:
        """The beginning of commands, and the words that a test adds to them."""
        entries = [line.rpartition(" + ") for line in self.marks.get("run with", "").splitlines()]
        return [(shlex.split(beginning), words) for beginning, _, words in entries]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    unknown = set(re.findall(r"^<!-- ([a-z ]+): ", text, re.MULTILINE)) - {*KINDS.split("|"), "generated"}
    assert not unknown, f"{page.name}: marks that mean nothing: {', '.join(unknown)}"
    found: list[Block] = []
    for match in FENCED.finditer(text):
        marked, language, rest, code = match.groups()
        line = text.count("\n", 0, match.start(2)) + 1
        title = re.search(r'title="(.*?)"', rest)
        marks = re.findall(MARK, marked, re.DOTALL)
        assert len(marks) == len(dict(marks)), f"{page.name}:{line}: a mark stands twice"
        found.append(Block(f"{page.name}:{line}", dict(marks), language, title[1] if title else "", code))
    marks = len(re.findall(rf"^{MARK}", text, re.MULTILINE | re.DOTALL))
    assert marks == sum(len(block.marks) for block in found), f"{page.name}: a mark that stands before no block"
    return found


def run(block: Block, folder: Path, names: dict[str, Any]) -> str:
    """Run a block in a folder, the current one; ``names`` are the page's Python names. Returns what was printed."""
    if first := block.marks.get("first"):
        exec(compile(first, block.place, "exec"), names)
    if block.title:
        assert not Path(block.title).is_absolute()
        Path(folder, block.title).write_text(_read_as(block.text, block), encoding="utf-8")
        return ""
    if block.language == "python":
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block.text, block.place, "exec"), names)
        return said.getvalue()
    if block.language == "bash":
        with contextlib.chdir(folder):  # it may go elsewhere; the next one begins here
            return "".join(_run_commands(block, folder))
    assert block.language in SHOWN, f"{block.place}: a block of {block.language!r}, which no test knows how to run"
    return ""


def _run_commands(block: Block, folder: Path) -> Iterator[str]:
    # What torchrun starts on several machines waits for the others.
    for together, commands in groupby(_commands(block), lambda words: words[0] == "torchrun"):
        if together:
            yield run_together(list(commands), folder, block.place)
        else:
            for words in commands:
                yield run_command(words, folder, block.place)


def _commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words, with what its marks make of them; each when its turn has come."""
    lines = [line for line in block.text.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]
    as_written = [shlex.split(line, comments=True) for line in lines]
    training = any(words[:2] in TRAINING for words in as_written)
    for beginning, _ in block.added:
        known = any(words[: len(beginning)] == beginning for words in as_written)
        assert known, f"{block.place}: no command begins with {shlex.join(beginning)}"
    for line, words in zip(lines, as_written, strict=True):
        more = []
        for beginning, added in block.added:
            takes_more = words[0] == "highrank" and (words[:2] in TRAINING or not training)
            if words[: len(beginning)] == beginning if beginning else takes_more:
                more += shlex.split(os.path.expandvars(added))
        yield shlex.split(_read_as(line, block), comments=True) + more


def _read_as(text: str, block: Block) -> str:
    for old, new in block.replaced:
        if old in text:
            text = text.replace(old, _expanded(new, block.place))
    return text


def _expanded(words: str, place: str) -> str:
    """With the values of $VARIABLES; a pattern becomes the name of the one file that there is."""
    words = os.path.expandvars(words)
    if "*" not in words:
        return words
    [found] = glob.glob(words) or [""]
    assert found, f"{place}: there is no {words}"
    return found
