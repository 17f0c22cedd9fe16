"""The fenced blocks of a Markdown page, run in order in a folder of their own as a reader would run them.

A block of ``bash`` or ``python`` runs as it stands, unless a comment on the line before it says otherwise:

    <!-- not run: reason -->               only checked: parsers, recipes, targets, extras and syntax have to know it
    <!-- run with: --set train.epochs=1 --> these words are added to each training command of the block, or, where it
                                            has none, to each highrank command: a smaller model, less text
    <!-- first: code -->                   Python that runs before the block, for the names that the page leaves open
    <!-- printed: by the block before -->  the block is what the one before it printed, to the letter

``highrank explore`` is stopped when its page has been fetched.

A block of another language with a ``title`` is a file that the reader writes; without one it is only shown.
"""

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from highrank.cli.main import main, make_parser

__all__ = ["ROOT", "Block", "blocks", "check", "commands", "run"]

ROOT = Path(__file__).resolve().parents[2]
MARK = r"<!-- (not run|run with|first|printed):\s+((?:(?!-->).)*?)\s*-->"
FENCED = re.compile(rf"(?:^{MARK}\n+)?^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = ("", "text", "json", "toml")
TRAINING = ("train", "run")


@dataclass(frozen=True)
class Block:
    place: str  # page:line
    mark: str  # "not run", "run with", "first", or nothing
    words: str  # of the mark
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in FENCED.finditer(text):
        mark, words, language, rest, code = match.groups(default="")
        line = text.count("\n", 0, match.start(5)) + 1
        title = re.search(r'title="(.*?)"', rest)
        found.append(Block(f"{page.name}:{line}", mark, words, language, title[1] if title else "", code))
    marks = len(re.findall(rf"^{MARK}", text, re.MULTILINE | re.DOTALL))
    assert marks == sum(bool(block.mark) for block in found), f"{page.name}: a mark that stands before no block"
    return found


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block of bash, without comments, each in one line."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if shlex.split(line, comments=True):
            yield line


def run(block: Block, folder: Path, names: dict[str, Any]) -> str:
    """Run a block in a folder, the current one; ``names`` are the page's Python names. Returns what was printed."""
    if block.mark == "not run":
        assert len(block.words.split()) >= 2, f"{block.place}: the reason is missing"
        check(block, folder)
        return ""
    if block.mark == "first":
        exec(compile(block.words, block.place, "exec"), names)
    if block.language == "python":
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block.text, block.place, "exec"), names)
        return said.getvalue()
    if block.language == "bash":
        return "".join(_command(words, block.place) for words in _with_more(block))
    assert block.language in SHOWN, f"{block.place}: a block of {block.language!r}, which no test knows how to run"
    if block.title:
        assert not Path(block.title).is_absolute()
        Path(folder, block.title).write_text(block.text, encoding="utf-8")
    return ""


def check(block: Block, folder: Path) -> None:
    """A block that is not run: what can be known of it without running it."""
    if block.language == "python":
        compile(block.text, block.place, "exec")
        return
    assert block.language == "bash", f"{block.place}: only Python and bash are run, so no other block is marked"
    for line in commands(block):
        try:
            _check(shlex.split(line, comments=True))
        except (AssertionError, SystemExit) as error:
            raise AssertionError(f"{block.place}: {line}: {error}") from error


def _with_more(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words, with what its mark adds to them."""
    lines = [shlex.split(line, comments=True) for line in commands(block)]
    more = shlex.split(block.words) if block.mark == "run with" else []
    training = any(words[:2] in (["highrank", each] for each in TRAINING) for words in lines)
    for words in lines:
        takes_more = words[0] == "highrank" and (words[1] in TRAINING or not training)
        yield words + more if takes_more else words


def _command(words: list[str], place: str) -> str:
    line = shlex.join(words)
    if words[0] != "highrank":
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{place}: {line}: {done.stderr}"
        return done.stdout
    if words[1] == "explore":
        return _explored(words[1:], place)
    # In this process, as its tests do: starting Python and PyTorch takes longer than what these commands do.
    said, noticed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(noticed):
        try:
            code = main(words[1:])
        except SystemExit as end:  # of argparse, after --help
            code = end.code
    assert code == 0, f"{place}: {line}: exit code {code}: {noticed.getvalue()[-2000:]}"
    assert "HIGHRANK_LAUNCHED" not in os.environ, f"{place}: {line}: errors would not be said any more"
    return said.getvalue()


def _explored(words: list[str], place: str) -> str:
    """Started, its page fetched, stopped by Ctrl-C."""
    command = [sys.executable, "-m", "highrank", *words, "--no-open-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if address:
            with urllib.request.urlopen(address, timeout=60) as page:
                assert page.status == 200, place
                assert "<html" in page.read().decode(), place
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert address.startswith("http://127.0.0.1:"), f"{place}: no address: {errors[-2000:]}"
    assert process.returncode == 0, f"{place}: exit code {process.returncode}: {errors[-2000:]}"
    return f"{address}\n"


def _check(words: list[str]) -> None:
    while "=" in words[0]:  # VARIABLE=value before a command
        words = words[1:]
    program, rest = words[0], words[1:]
    if program == "highrank":
        arguments = make_parser().parse_args(rest)
        if rest[0] in TRAINING:  # the recipe and every --set resolve, on a text of a test's size
            assert main(["train", arguments.recipe, "--dry-run", *_sets(arguments)]) == 0
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        inner = get_args_parser().parse_args(rest)
        assert (inner.module, inner.training_script) == (True, "highrank")
        _check(["highrank", *inner.training_script_args])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        for word in rest:
            assert "=" in word or word in targets, f"make has no target {word}"
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert rest[0] == "install"
        for extra in ",".join(re.findall(r"\[(.*?)\]", " ".join(rest))).split(","):
            assert not extra or extra in project["optional-dependencies"], f"no extra {extra}"
    elif program == "python":
        _check_parsed(rest)
    else:
        raise AssertionError(f"no test knows how to check {program}")


def _sets(arguments: argparse.Namespace) -> list[str]:
    return [word for override in arguments.overrides for word in ("--set", override)]


def _check_parsed(words: list[str]) -> None:
    """``python -m MODULE ...`` or ``python FILE ...`` up to the parsing of its words, which has to succeed."""
    as_module = words[0] == "-m"
    target, rest = (words[1], words[2:]) if as_module else (words[0], words[1:])
    # The paper's scripts lie in paper/ and import one another.
    path = ROOT / (target.replace(".", "/") + ".py" if as_module else f"paper/{target}")
    if "parse_args" not in path.read_text(encoding="utf-8"):
        assert not rest, f"{target} takes no arguments"
        return

    class ParsedError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def and_stop(parser: argparse.ArgumentParser, *given: Any) -> argparse.Namespace:
        parse(parser, *given)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", and_stop)
        patch.setattr(sys, "argv", [target, *rest])
        patch.syspath_prepend(path.parent)
        with pytest.raises(ParsedError):
            runpy.run_path(str(path), run_name="__main__")
