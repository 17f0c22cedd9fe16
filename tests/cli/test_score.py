"""``highrank score`` as a user calls it."""

import io
import json
import math
from pathlib import Path

import pytest

from benchmarks.processes import here, one_line
from highrank.data import load_corpus
from highrank.runs import load
from tests.untrained import make_run


@pytest.fixture(scope="module")
def runs(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for head in ("softmax", "mixture-of-softmaxes"):
        make_run(folder / head, load_corpus(small_text), head)
    return folder


@pytest.fixture
def text(runs: Path, tmp_path: Path) -> Path:
    """A word that is known, twice, and one that is not, on two lines."""
    _, vocabulary = load(runs / "softmax")
    known = next(word for word in vocabulary.words if word.isalpha())
    path = tmp_path / "text.txt"
    path.write_text(f"{known.upper()}\n\nnever-seen {known}\n", encoding="utf-8")
    return path


def test_a_table(runs: Path, text: Path) -> None:
    done = here("score", runs / "mixture-of-softmaxes", text, "--components", "--device", "cpu")
    assert done.returncode == 0
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    parts = [f"{name}_{k}" for name in ("prior", "posterior") for k in (1, 2, 3)]
    assert head == ["line", "place", "typed", "read", "nats", "bits", *parts]
    known = rows[0][3]
    assert [row[:4] for row in rows] == [
        ["1", "1", known.upper(), known],
        ["1", "2", "", "<eos>"],
        ["3", "1", "never-seen", "<unk>"],
        ["3", "2", known, known],
        ["3", "3", "", "<eos>"],
    ]
    for row in rows:
        nats, bits, *shares = map(float, row[4:])
        assert nats == pytest.approx(bits * math.log(2), abs=1e-5)
        assert sum(shares) == pytest.approx(2, abs=1e-5)
    mean = sum(float(row[4]) for row in rows) / 5
    assert f"perplexity {math.exp(mean):.2f}, {mean:.4f} nats over 5 tokens" in done.stderr
    assert "not in the vocabulary, read as <unk>: never-seen" in done.stderr


def test_json_has_the_same_figures(runs: Path, text: Path) -> None:
    table = here("score", runs / "softmax", text, "--by-line", "--device", "cpu").stdout.splitlines()
    result = json.loads(here("score", runs / "softmax", text, "--by-line", "--device", "cpu", "--json").stdout)
    assert [f"{word['nats']:.6f}" for word in result["words"]] == [line.split("\t")[4] for line in table[1:]]
    assert (result["tokens"], result["not_in_the_vocabulary"], result["by_line"]) == (5, 1, True)
    assert result["loss_nats"] == pytest.approx(sum(word["nats"] for word in result["words"]) / 5)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss_nats"]))


def test_standard_input(runs: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = here("score", runs / "softmax", text, "--device", "cpu").stdout
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
    assert here("score", runs / "softmax", "-", "--device", "cpu").stdout == from_file


def test_what_cannot_be_scored(runs: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(here("score", runs / "softmax", tmp_path / "none.txt"), "none.txt: no such file")
    one_line(here("score", runs / "softmax", tmp_path), "expected a plain file, got a folder")
    one_line(here("score", runs / "softmax", text, "--components"), "--components", "one softmax", codes=(2,))
    empty, foreign = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n \n")
    foreign.write_bytes("caf\u00e9".encode("latin-1"))
    one_line(here("score", runs / "softmax", empty), "expected at least one word", "got none")
    one_line(here("score", runs / "softmax", foreign), "latin.txt is not UTF-8 text (at byte 3)")
    monkeypatch.setattr("highrank.cli.score.TEXT_LIMIT_BYTES", 5)
    one_line(here("score", runs / "softmax", text), "more than the limit of 5 for such a file")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"too long")))
    one_line(here("score", runs / "softmax", "-"), "standard input: more than the limit of 5 bytes")
