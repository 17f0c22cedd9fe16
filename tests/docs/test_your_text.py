"""The program on the page of one's own text, on texts that are not plain English in many lines."""

import unicodedata
from pathlib import Path

import pytest

from highrank.data import load_corpus
from tests.docs.snippets import ROOT, blocks

[PROGRAM] = [block.text for block in blocks(ROOT / "docs" / "your-text.md") if block.language == "python"]


def made_of(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, times: int = 20) -> list[str]:
    """The words of the first training line that the program makes of a text with this line so many times."""
    monkeypatch.chdir(folder)
    Path("novel.txt").write_text(f"{line}\n\n" * times, encoding="utf-8")
    exec(compile(PROGRAM, "your-text.md", "exec"), {})
    corpus = load_corpus("novel")
    assert all(len(tokens) for tokens in corpus.tokens.values())
    return Path("novel/train.txt").read_text(encoding="utf-8").splitlines()[0].split(" ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("It was late; nobody spoke.", ["it", "was", "late", ";", "nobody", "spoke", "."]),
        ("the <unk> of N", ["the", "<unk>", "of", "n"]),
        ("\ufeffone, two", ["one", ",", "two"]),
        ("हिन्दी में किताब।", ["हिन्दी", "में", "किताब", "।"]),
        ("בְּרֵאשִׁית בָּרָא,", ["בְּרֵאשִׁית", "בָּרָא", ","]),
        ("می\u200cخواهم.", ["می\u200cخواهم", "."]),
        (
            "an \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}!",
            ["an", "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "!"],
        ),
    ],
)
def test_words_stay_whole(line: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made_of(line, tmp_path, monkeypatch) == [unicodedata.normalize("NFC", word) for word in words]


def test_an_accent_is_written_in_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = unicodedata.normalize("NFD", "Ein Mädchen, čaj")
    assert made_of(f"mädchen {decomposed}", tmp_path, monkeypatch) == ["mädchen", "ein", "mädchen", ",", "čaj"]
    assert len(load_corpus("novel").vocabulary) == 5  # <eos> counts


@pytest.mark.parametrize("times", [0, 1, 3, 19])
def test_few_lines_are_refused(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=rf"^{times} lines cannot be cut into three texts: "):
        made_of("A sentence. " * 1000, tmp_path, monkeypatch, times=times)
