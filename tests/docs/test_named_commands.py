"""Commands that a sentence or a table names, and that no block shows: programs, options and targets that there are."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from highrank.cli.main import make_parser
from tests.docs.snippets import ROOT
from tests.docs.test_pages import PAGES

NAMED = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:highrank|make|python -m) [^`]+)`")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> Iterator[list[str]]:
    for said in NAMED.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        for command in said.split(";"):
            yield re.sub(r"^(\w+=\S+ )*", "", command.strip()).split()


def options_of(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """Of the command within a parser that the words name. Raises AssertionError if there is no such command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and not words[0].isupper():
            assert words[0] in action.choices, f"no command {words[0]}"
            return options_of(action.choices[words[0]], words[1:])
    return set(parser._option_string_actions)


def check(words: list[str]) -> None:
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "highrank":
        assert options <= options_of(make_parser(), words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[2].startswith("benchmarks."):
        code = (ROOT / f"{words[2].replace('.', '/')}.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in code for option in options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_is_named_exists(page: Path) -> None:
    for words in named(page):
        try:
            check(words)
        except (AssertionError, OSError) as error:
            raise AssertionError(f"{page.name}: {' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    "command",
    [
        "highrank trains",
        "highrank data fetch",
        "highrank evaluate RUN --papers",
        "make everything",
        "python -m benchmarks.nothing",
        "python -m benchmarks.faults --deaths 50",
    ],
)
def test_one_that_does_not_exist_is_found(command: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Try `VARIABLE=1 {command}` once.\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        test_a_command_that_is_named_exists(page)
