"""Words and their numbers, and the file that keeps them."""

from pathlib import Path

import pytest

from highrank.data import Vocabulary
from highrank.errors import UserError


def test_words_and_numbers_are_each_others_inverse() -> None:
    vocabulary = Vocabulary(("the", "cat", "<eos>"))
    assert len(vocabulary) == 3
    assert vocabulary.words[1] == "cat"
    assert vocabulary.index["<eos>"] == 2
    assert vocabulary.encode(["cat", "the"]) == [1, 0]
    assert vocabulary.decode([2, 1]) == ["<eos>", "cat"]


def test_an_unknown_word_becomes_unk_where_there_is_one() -> None:
    assert Vocabulary(("a", "<unk>")).encode(["a", "zebra"]) == [0, 1]
    with pytest.raises(UserError, match="zebra"):
        Vocabulary(("a", "b")).encode(["a", "zebra"])


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_outside_the_vocabulary_is_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"number {number} is outside the vocabulary of 2 words"):
        Vocabulary(("a", "b")).decode([number])


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (("a", "b", "c"), ""),
        (("a", "b", "d"), "'d' is new; 'c' is missing"),
        (("e", "b", "d"), "2 words are new, 'e' the first; 2 words are missing, 'a' the first"),
        (("a", "c", "b"), "the same words stand in another order"),
    ],
)
def test_what_differs_is_named(words: tuple[str, ...], difference: str) -> None:
    assert Vocabulary(("a", "b", "c")).difference(Vocabulary(words)) == difference


def test_a_word_stands_in_it_once() -> None:
    with pytest.raises(UserError, match="'a' stands in it twice"):
        Vocabulary(("a", "b", "a"))


@pytest.mark.parametrize("words", [(), ("a",), ("naïve", "日本", "\u2028", "a b", "")])
def test_save_and_load(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "vocabulary.txt"
    Vocabulary(("old",)).save(path)
    Vocabulary(words).save(path)
    assert Vocabulary.load(path) == Vocabulary(words)
    assert [entry.name for entry in tmp_path.iterdir()] == ["vocabulary.txt"]
    assert path.read_bytes() == "".join(word + "\n" for word in words).encode()


def test_a_file_that_is_not_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        Vocabulary.load(path)
    path.write_bytes(b"a\nb")
    with pytest.raises(UserError, match="cut off"):
        Vocabulary.load(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8 text \\(at byte 2\\)"):
        Vocabulary.load(path)
    with pytest.raises(UserError, match="line break"):
        Vocabulary(("a\nb",)).save(path)
