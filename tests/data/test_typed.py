"""What is read of a typed text."""

import pytest

from highrank.data import Vocabulary
from highrank.data.typed import Word, read_text, read_word

VOCABULARY = Vocabulary(("<eos>", "the", "cat", "<unk>", "N", "Paris"))


def words(text: str, vocabulary: Vocabulary = VOCABULARY) -> list[str]:
    """Each word as it is read."""
    reading = read_text(text, vocabulary, longest=100)
    return [vocabulary.words[token] for token in reading.tokens]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", ["<eos>"]),
        ("  the   cat ", ["<eos>", "the", "cat"]),
        ("The CAT in Paris PARIS", ["<eos>", "the", "cat", "<unk>", "Paris", "<unk>"]),
        ("the <unk> N", ["<eos>", "the", "<unk>", "N"]),
        ("the\ncat", ["<eos>", "the", "<eos>", "cat"]),
        ("the\n\n\r\ncat", ["<eos>", "the", "<eos>", "cat"]),
        ("the\n", ["<eos>", "the", "<eos>"]),
        ("\n\n the", ["<eos>", "the"]),
    ],
)
def test_what_is_read(text: str, read: list[str]) -> None:
    assert words(text) == read


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("cat,", [("cat", "cat"), (",", None)]),
        ("(The", [("(", None), ("The", "the")]),
        ("dog.", [("dog.", "<unk>")]),
        ("dog.The", [("dog", "<unk>"), (".", None), ("The", "the")]),
        (",", [(",", "<unk>")]),
    ],
)
def test_a_word_is_cut_where_the_vocabulary_knows_a_piece(typed: str, read: list[tuple[str, str | None]]) -> None:
    assert read_word(typed, VOCABULARY) == read


def test_a_mark_that_is_known_is_a_word() -> None:
    vocabulary = Vocabulary(("<eos>", "<unk>", "cat", ","))
    assert words("cat, dog,", vocabulary) == ["<eos>", "cat", ",", "<unk>", ","]


def test_unknown_words_are_named_once() -> None:
    reading = read_text("dog the dog <unk> bird", VOCABULARY, longest=100)
    assert reading.unknown == ["dog", "bird"]
    assert reading.words[0] == Word("dog", "<unk>")


def test_without_unk_a_word_is_left_out() -> None:
    vocabulary = Vocabulary(("<eos>", "the", "cat"))
    assert words("the dog cat", vocabulary) == ["<eos>", "the", "cat"]
    assert read_text("the dog cat", vocabulary, longest=9).unknown == ["dog"]


def test_without_line_ends_nothing_is_put_before_the_text() -> None:
    vocabulary = Vocabulary(("the", "cat"))
    assert words("the\ncat", vocabulary) == ["the", "cat"]
    assert words("", vocabulary) == []


@pytest.mark.parametrize(("keep", "read"), [("first", ["<eos>", "the", "cat"]), ("last", ["<eos>", "N", "Paris"])])
def test_a_long_text_is_cut(keep: str, read: list[str]) -> None:
    reading = read_text("the cat N Paris", VOCABULARY, longest=2, keep=keep)
    assert [VOCABULARY.words[token] for token in reading.tokens] == read
    assert reading.dropped == 2
