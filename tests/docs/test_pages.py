"""Every command and every Python snippet of the README and the documentation runs, or says why it does not."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import ROOT, blocks, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def readers_folder(tmp_path: Path, small_text: Path, kjv: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; by their names the corpora are found, the large ones as small texts."""
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    for name, folder in {"penn": small_text, "wikitext-2": small_text, "kjv": kjv}.items():
        (corpora / name).symlink_to(folder)
    monkeypatch.setenv("HIGHRANK_DATA", str(corpora))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "monkeypatch": monkeypatch}
    for block in blocks(page):
        run(block, readers_folder, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_in_an_indented_block(page: Path) -> None:
    """They would be shown, and not run."""
    text = re.sub(r"<!-- generated: (.+?) -->.*?<!-- end of \1 -->", "", page.read_text(encoding="utf-8"), flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    assert re.findall(r"^ {4,}(?:highrank|python|pip|make|torchrun) .*$", text, re.M) == []
