"""Every command and every Python snippet of the README and the documentation runs."""

import re
import shutil
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import ROOT, Block, blocks, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_SLOW_BLOCKS = [page for page in PAGES if any(block.slow for block in blocks(page))]


def left_out(folder: str, names: list[str]) -> set[str]:
    """Of a folder of the source: what .gitignore names."""
    rules = [".git", *(ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    here = [rule.strip("/") for rule in rules if not rule.startswith("/") or Path(folder) == ROOT]
    return {name for pattern in here for name in matching(names, pattern)}


@pytest.fixture
def readers_folder(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source to work in; under the name of each corpus lies a small text, some verses of each split."""
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    for name in ("penn", "wikitext-2", "kjv"):
        (corpora / name).symlink_to(small_text)
    monkeypatch.setenv("HIGHRANK_DATA", str(corpora))
    work = tmp_path / "work"
    shutil.copytree(ROOT, work, ignore=left_out)
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show([block for block in blocks(page) if not block.slow], readers_folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SLOW_BLOCKS, ids=lambda page: page.name)
def test_what_takes_minutes_runs(page: Path, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show([block for block in blocks(page) if block.slow], readers_folder, monkeypatch)


def show(shown: list[Block], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "monkeypatch": monkeypatch}
    printed = ""
    for block in shown:
        if "printed" in block.marks:
            assert block.text == printed, block.place
        else:
            printed = run(block, folder, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_in_an_indented_block(page: Path) -> None:
    """They would be shown, and not run."""
    text = re.sub(r"<!-- generated: (.+?) -->.*?<!-- end of \1 -->", "", page.read_text(encoding="utf-8"), flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert re.findall(r"^ {4,}(?:highrank|python|pip|make|torchrun) .*$", text, re.M) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_work_where_the_repository_is_read(page: Path) -> None:
    """On the site they are tested in ``test_site.py``."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        other = (page.parent / target).resolve() if target else page
        assert other.is_file(), f"{page.name} -> {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name} -> {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Of headings, as repository hosts make them: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
