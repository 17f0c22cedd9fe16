"""A corpus from one file: tokens, vocabulary and cuts by the rules of the docstring, and texts that cannot be cut."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import here, one_line
from highrank.data import corpus_statistics, load_corpus
from highrank.data.make import LONGEST_LINE_BYTES, make_corpus, words_of


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("It was, he said, -- fine.\r\n", ["it", "was", ",", "he", "said", ",", "-", "-", "fine", "."]),
        ("Don't; a well-known 'thing'", ["don't", ";", "a", "well-known", "'", "thing", "'"]),
        ("1,000.50 of 3, in 1984.", ["1,000.50", "of", "3", ",", "in", "1984", "."]),
        ("A <unk> of N", ["a", "<unk>", "of", "n"]),
        ("in _italics_", ["in", "_", "italics", "_"]),
        ("हिन्दी में किताब।", ["हिन्दी", "में", "किताब", "।"]),
        ("בְּרֵאשִׁית בָּרָא,", ["בְּרֵאשִׁית", "בָּרָא", ","]),
        ("می\u200cخواهم.", ["می\u200cخواهم", "."]),
        (
            "an \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}!",
            ["an", "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "!"],
        ),
        ("\ufeffx\u2028soft\u00adly\tz\u200bz", ["x", "softly", "z", "z"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert words_of(line) == [unicodedata.normalize("NFC", word) for word in words]


def test_an_accent_is_written_in_one_way() -> None:
    line = unicodedata.normalize("NFD", "Mädchen, čaj")
    assert words_of(f"mädchen {line}") == ["mädchen", "mädchen", ",", "čaj"]


def test_cut_and_vocabulary(tmp_path: Path) -> None:
    lines = [f"Common common line of number{number} ." for number in range(40)]
    text = "\n\n".join(lines[:20]) + "\n  \n\ufeff\n" + "\r\n".join(lines[20:])  # no end of the last line
    source = tmp_path / "text.txt"
    source.write_bytes(b"\xef\xbb\xbf" + text.encode())

    def made(name: str, **how: Any) -> dict[str, list[str]]:
        target = make_corpus(source, tmp_path / "made" / name, **how)
        return {split: (target / f"{split}.txt").read_text().splitlines() for split in ("train", "valid", "test")}

    large = made("large")
    assert {split: len(part) for split, part in large.items()} == {"train": 36, "valid": 2, "test": 2}
    assert set().union(*large.values()) == {"common common line of <unk> ."}, "what is seen once says what is not known"
    assert set(made("small", vocabulary_size=5)["test"]) == {"common common line of <unk> <unk>"}, "the first of equals"
    whole = [line.lower() for line in lines]
    assert made("whole", vocabulary_size=0) == {"train": whole[:36], "valid": whole[36:38], "test": whole[38:]}
    assert made("as it is", vocabulary_size=0, keep_case=True)["test"] == lines[38:]
    assert sorted(path.name for path in tmp_path.rglob("*.new*")) == [], "no leftovers"


def test_vocabulary_of_penn(corpora: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_bytes((corpora / "penn" / "train.txt").read_bytes())
    made = load_corpus(make_corpus(source, tmp_path / "made", vocabulary_size=5000))
    lines = [words_of(line) for line in source.read_text().splitlines()]
    train = lines[: len(lines) * 9 // 10]
    assert len(made.tokens["train"]) == sum(map(len, train)) + len(train)
    assert len(made.vocabulary) == 5000
    counts = Counter(word for line in train for word in line if word != "<unk>")
    rarest = min(counts[word] for word in made.vocabulary.words if word in counts)
    assert all(count <= rarest for word, count in counts.items() if word not in made.vocabulary.index)
    assert corpus_statistics(made)["out_of_vocabulary"] == {"valid": 0.0, "test": 0.0}


def test_the_command_makes_it_and_the_next_one_trains_on_it(small_text: Path, tmp_path: Path) -> None:
    text = tmp_path / "novel.txt"
    text.write_text((small_text / "train.txt").read_text().upper())
    where = tmp_path / "novel"
    done = here("data", "make", text, "--out", where, "--vocabulary", "100", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["vocabulary_size"] == 100
    assert figures["folder"] == str(where)
    said = here("data", "info", "novel", "--data", where)
    again = here("data", "make", text, "--out", tmp_path / "again", "--vocabulary", "100")
    assert again.stdout.splitlines()[1:] == said.stdout.splitlines()[1:], "the same figures"
    kept = here("data", "make", text, "--out", tmp_path / "kept", "--keep-case")
    assert kept.returncode == 0, kept.stderr
    assert "THE" in (tmp_path / "kept" / "train.txt").read_text()
    assert "THE" not in (where / "train.txt").read_text()
    trained = here("train", "kjv-demo", "--data", where, "--dry-run", "--json")
    assert json.loads(trained.stdout)["vocabulary"] == 100


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a line\n" * 19, "at least 20 lines with text, to be cut into three parts, got 19"),
        (b"", "got 0"),
        (b"a line\n" * 30 + b"caf\xe9\n", "not UTF-8 text: line 31, byte 3"),
        (b"word " * (LONGEST_LINE_BYTES // 5 + 1), "line 1 is longer than 1,048,576 bytes"),
    ],
    ids=["few", "empty", "latin-1", "one line"],
)
def test_texts_that_cannot_be_cut(content: bytes, words: str, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_bytes(content)
    one_line(here("data", "make", source, "--out", tmp_path / "made"), words, codes=(1,))
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_files_and_folders_that_will_not_do(small_text: Path, tmp_path: Path) -> None:
    text = small_text / "train.txt"
    one_line(here("data", "make", tmp_path / "none.txt"), "no such file", codes=(1,))
    one_line(here("train", "kjv-demo", "--data", text), f"`highrank data make {text}` makes one", codes=(1,))
    one_line(here("data", "make", tmp_path), "expected a plain file, got a folder", codes=(1,))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("keep")
    one_line(here("data", "make", text, "--out", tmp_path / "there"), "exists already", codes=(1,))
    one_line(here("data", "make", text, "--out", text / "made"), "cannot write the corpus", codes=(1,))
    one_line(here("data", "make", text, "--out", tmp_path / "x", "--vocabulary", "2"), "3 words or more", codes=(2,))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there" / "mine").read_text() == "keep"
