"""Text to numbers: the rule, the cache, and what is said when the text is not there or not text."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from highrank.data import Corpus, corpus_statistics, encoding, find_corpus, load_corpus, word_counts
from highrank.data import corpus as corpus_module
from highrank.errors import UserError

SPLITS = ("train", "valid", "test")
KNOWN = {
    "penn": ({"train": 929_589, "valid": 73_760, "test": 82_430}, 10_000),
    "wikitext-2": ({"train": 2_088_628, "valid": 217_646, "test": 245_569}, 33_278),
}


def write_corpus(folder: Path, train: str = "a b\n", valid: str = "b c\n", test: str = "a\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in zip(SPLITS, (train, valid, test), strict=True):
        (folder / f"{split}.txt").write_bytes(text.encode())
    return folder


def age(folder: Path) -> None:
    """Let the files look as if they had been written long ago: only such files are remembered."""
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


def words(corpus: Corpus, split: str) -> list[str]:
    return corpus.vocabulary.decode(corpus.tokens[split])


def by_definition(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [word for line in lines for word in [*line.split(), "<eos>"]]


def test_the_text_rule(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "own", "the  cat\tsat\r\n\nthe end", " \n", "naïve cat\n")
    corpus = load_corpus(folder, cache=tmp_path / "cache")
    assert corpus.name == "own"
    assert corpus.folder == folder
    assert words(corpus, "train") == ["the", "cat", "sat", "<eos>", "<eos>", "the", "end", "<eos>"]
    assert words(corpus, "valid") == ["<eos>"]
    assert words(corpus, "test") == ["naïve", "cat", "<eos>"]
    assert corpus.vocabulary.words == ("the", "cat", "sat", "<eos>", "end", "naïve")
    for tokens in corpus.tokens.values():
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == np.int32
        assert not tokens.flags.writeable


@given(text=st.text(alphabet="ab é日\n\r\t\x1c\u2028\u00a0\u3000", min_size=1, max_size=60), block=st.integers(1, 7))
@settings(max_examples=300)
def test_the_size_of_a_block_changes_nothing(tmp_path_factory: pytest.TempPathFactory, text: str, block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "text.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "BLOCK_BYTES", block)
        sha256 = hashlib.sha256()
        assert [word for part in encoding._words(path, sha256) for word in part] == by_definition(text)
        assert sha256.digest() == hashlib.sha256(text.encode()).digest()
        assert encoding.count_tokens(path) == len(by_definition(text))


@pytest.mark.parametrize("space", ["\r", "\u3000", "\u00a0"])
def test_a_word_ends_at_any_white_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 100)
    monkeypatch.setattr(encoding, "LONGEST_WORD", 100)
    folder = write_corpus(tmp_path / "own", f"some{space}words{space}" * 100)
    corpus = load_corpus(folder, cache=tmp_path / "cache")
    assert words(corpus, "train") == ["some", "words"] * 100 + ["<eos>"]


def test_blank_lines_are_a_text(tmp_path: Path) -> None:
    corpus = load_corpus(write_corpus(tmp_path / "own", "\n\n\n", "\n", "\n"), cache=tmp_path / "cache")
    assert corpus.vocabulary.words == ("<eos>",)
    assert corpus.tokens["train"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", KNOWN)
def test_the_real_corpora(corpora: Path, tmp_path: Path, name: str) -> None:
    counts, types = KNOWN[name]
    corpus = load_corpus(corpora / name, cache=tmp_path)
    statistics = corpus_statistics(corpus)
    assert statistics["tokens"] == counts
    assert statistics["vocabulary_size"] == len(corpus.vocabulary) == types
    assert words(corpus, "test")[:1000] == by_definition((corpora / name / "test.txt").read_text("utf-8"))[:1000]


def test_statistics(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "own", "a b <unk>\n", "a new <unk> <unk>\nnew other\n", "a\n")
    statistics = corpus_statistics(load_corpus(folder, cache=tmp_path / "cache"))
    assert statistics == {
        "vocabulary_size": 6,
        "tokens": {"train": 4, "valid": 8, "test": 2},
        "out_of_vocabulary": {"valid": 3 / 8, "test": 0.0},
        "unknown": {"train": 1 / 4, "valid": 2 / 8, "test": 0.0},
    }
    assert json.loads(json.dumps(statistics)) == statistics


def test_counts_are_of_one_split_and_of_every_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "COUNTING_BLOCK", 3)
    corpus = load_corpus(write_corpus(tmp_path / "own", "a b a a\nb a a\n", "c\n"), cache=tmp_path / "cache")
    counts = dict(zip(corpus.vocabulary.words, word_counts(corpus).tolist(), strict=True))
    assert counts == {"a": 5, "b": 2, "<eos>": 2, "c": 0}
    assert word_counts(corpus, "valid").tolist() == [0, 0, 1, 1]


class TestCache:
    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The name of every text file that is read, in order."""
        names = []
        original = encoding._blocks

        def counted(path: Path):  # type: ignore[no-untyped-def]
            names.append(path.name)
            return original(path)

        monkeypatch.setattr(encoding, "_blocks", counted)
        return names

    def test_an_unchanged_text_is_not_read_again(
        self, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoding, "SETTLED_NS", -1)
        folder = write_corpus(tmp_path / "own")
        first = load_corpus(folder, cache=tmp_path / "cache")
        assert reads
        reads.clear()
        second = load_corpus(folder, cache=tmp_path / "cache")
        assert reads == []
        assert second.sha256 == first.sha256
        assert words(second, "train") == ["a", "b", "<eos>"]

    def test_a_text_written_just_now_is_not_trusted_to_stay(self, tmp_path: Path, reads: list[str]) -> None:
        folder = write_corpus(tmp_path / "own")
        times = (folder / "train.txt").stat().st_mtime_ns
        assert words(load_corpus(folder, cache=tmp_path / "cache"), "train") == ["a", "b", "<eos>"]
        (folder / "train.txt").write_bytes(b"b a\n")
        os.utime(folder / "train.txt", ns=(times, times))
        assert words(load_corpus(folder, cache=tmp_path / "cache"), "train") == ["b", "a", "<eos>"]

    def test_a_changed_text_is_noticed_even_with_its_old_size_and_time(self, tmp_path: Path) -> None:
        folder = write_corpus(tmp_path / "own")
        age(folder)
        time.sleep(2.1)  # the times of change cannot be set back: let them settle, so that the text is remembered
        load_corpus(folder, cache=tmp_path / "cache")
        assert list((tmp_path / "cache" / "seen").iterdir())
        (folder / "train.txt").write_bytes(b"b a\n")
        age(folder)
        assert words(load_corpus(folder, cache=tmp_path / "cache"), "train") == ["b", "a", "<eos>"]
        assert len(list((tmp_path / "cache" / "encoded").iterdir())) == 2

    def test_the_same_text_elsewhere_is_not_encoded_again(self, tmp_path: Path, reads: list[str]) -> None:
        load_corpus(write_corpus(tmp_path / "one"), cache=tmp_path / "cache")
        reads.clear()
        corpus = load_corpus(write_corpus(tmp_path / "two"), cache=tmp_path / "cache")
        assert reads == ["train.txt", "valid.txt", "test.txt"]  # hashed, once each
        assert corpus.name == "two"
        assert len(list((tmp_path / "cache" / "encoded").iterdir())) == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda entry: (entry / "train.npy").write_bytes((entry / "train.npy").read_bytes()[:-4]),
            lambda entry: (entry / "train.npy").write_bytes(b""),
            lambda entry: (entry / "train.npy").write_bytes((entry / "valid.npy").read_bytes()),
            lambda entry: (entry / "train.npy").write_bytes((entry / "train.npy").read_bytes()[:-4] + b"\1\0\0\0"),
            lambda entry: (entry / "valid.npy").unlink(),
            lambda entry: (entry / "vocabulary.txt").write_bytes(b"a\n\n\n\n\n\n"),
            lambda entry: (entry / "vocabulary.txt").write_bytes(b"a\n"),
            lambda entry: (entry / "meta.json").write_bytes(b"{"),
            lambda entry: (entry / "meta.json").write_bytes(b"[]"),
            lambda entry: (entry / "meta.json").unlink(),
        ],
    )
    def test_a_damaged_entry_is_made_again(self, tmp_path: Path, damage: Callable[[Path], None]) -> None:
        folder = write_corpus(tmp_path / "own")
        load_corpus(folder, cache=tmp_path / "cache")
        (entry,) = (tmp_path / "cache" / "encoded").iterdir()
        damage(entry)
        assert words(load_corpus(folder, cache=tmp_path / "cache"), "train") == ["a", "b", "<eos>"]
        assert list((tmp_path / "cache" / "encoded").iterdir()) == [entry]
        assert load_corpus(folder, cache=tmp_path / "cache").vocabulary.words == ("a", "b", "<eos>", "c")

    def test_a_damaged_memory_of_files_is_no_obstacle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "SETTLED_NS", -1)
        folder = write_corpus(tmp_path / "own")
        load_corpus(folder, cache=tmp_path / "cache")
        (seen,) = (tmp_path / "cache" / "seen").iterdir()
        for content in (b"", b"[]", b'{"train": 3}'):
            seen.write_bytes(content)
            assert words(load_corpus(folder, cache=tmp_path / "cache"), "test") == ["a", "<eos>"]

    def test_processes_that_encode_at_the_same_time(self, tmp_path: Path) -> None:
        folder = write_corpus(tmp_path / "own", "some words in a line\n" * 20_000)
        with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(load_and_sum, [str(folder)] * 8, [str(tmp_path / "cache")] * 8))
        assert len(set(results)) == 1
        assert results[0][0] == 120_000
        assert len(list((tmp_path / "cache" / "encoded").iterdir())) == 1

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_bytes(b"a file where a folder should be")
        with pytest.raises(UserError, match=r"cannot write the cache folder .* HIGHRANK_CACHE") as caught:
            load_corpus(write_corpus(tmp_path / "own"), cache=tmp_path / "cache")
        assert "\n" not in str(caught.value)

    def test_the_cache_folder_can_be_chosen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HIGHRANK_CACHE", str(tmp_path / "chosen"))
        load_corpus(write_corpus(tmp_path / "own"))
        assert list((tmp_path / "chosen" / "encoded").iterdir())


def load_and_sum(folder: str, cache: str) -> tuple[int, int]:
    tokens = load_corpus(folder, cache=cache).tokens["train"]
    return len(tokens), int(tokens.sum())


class TestMistakes:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nowhere does not exist: it should hold train.txt"):
            load_corpus(tmp_path / "nowhere")

    def test_a_split_is_missing(self, tmp_path: Path) -> None:
        folder = write_corpus(tmp_path / "own")
        (folder / "valid.txt").unlink()
        with pytest.raises(UserError, match=r"has no valid.txt: it needs train.txt, valid.txt and test.txt"):
            load_corpus(folder, cache=tmp_path / "cache")

    @pytest.mark.parametrize("text", ["", "\ufeff"])
    def test_a_split_is_empty(self, tmp_path: Path, text: str) -> None:
        folder = write_corpus(tmp_path / "own", test=text)
        for _ in range(2):  # a cache that has it changes nothing
            with pytest.raises(UserError, match=r"test.txt is empty: each split needs at least one line of text"):
                load_corpus(folder, cache=tmp_path / "cache")

    def test_more_words_than_a_vocabulary_may_hold(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("highrank.data.vocabulary.VOCABULARY_LIMIT_BYTES", 17)
        folder = write_corpus(tmp_path / "own", "a b <unk>\n")
        said = r"own: a vocabulary of 5 words, 18 bytes, is over the limit of 17 bytes: write <unk> for rare words"
        with pytest.raises(UserError, match=said):
            load_corpus(folder, cache=tmp_path / "cache")
        assert not list((tmp_path / "cache" / "encoded").iterdir())
        monkeypatch.setattr("highrank.data.vocabulary.VOCABULARY_LIMIT_BYTES", 18)
        assert len(load_corpus(folder, cache=tmp_path / "cache").vocabulary) == 5

    @pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
    @pytest.mark.parametrize(
        ("content", "place"),
        [
            (b"good\nso \xff bad\n", "line 2, byte 8"),
            ("é\né ".encode() + b"\xe9\n", "line 2, byte 6"),
            (b"a\nb\xe6\x97", "ends within a character \\(line 2, byte 5\\)"),
        ],
    )
    def test_not_utf8(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, content: bytes, place: str
    ) -> None:
        monkeypatch.setattr(encoding, "BLOCK_BYTES", block)
        folder = write_corpus(tmp_path / "own")
        (folder / "valid.txt").write_bytes(content)
        with pytest.raises(UserError, match=f"valid.txt is not UTF-8 text: .*{place}") as caught:
            load_corpus(folder, cache=tmp_path / "cache")
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "cache" / "encoded").iterdir())


class TestFinding:
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("highrank.data.catalog.store_folder", lambda: tmp_path / "store")
        return tmp_path / "store"

    def test_the_order_of_places(self, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stored = write_corpus(store / "penn")
        assert find_corpus("penn") == stored
        monkeypatch.setenv("HIGHRANK_DATA", str(tmp_path / "own"))
        assert find_corpus("penn") == stored
        own = write_corpus(tmp_path / "own" / "penn")
        assert find_corpus("penn") == own
        given_folder = write_corpus(tmp_path / "given")
        assert find_corpus("penn", given_folder) == given_folder

    def test_not_found(self, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UserError) as caught:
            find_corpus("penn")
        message = str(caught.value)
        for part in ("highrank data get penn", "train.txt", str(store / "penn"), "--data DIR", "HIGHRANK_DATA"):
            assert part in message
        assert "\n" not in message
        monkeypatch.setenv("HIGHRANK_DATA", str(tmp_path / "own"))
        with pytest.raises(UserError, match=r"'mine' was not found: put train.txt") as caught:
            find_corpus("mine")
        assert str(tmp_path / "own" / "mine") in str(caught.value)

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"--data .* is not a folder"):
            find_corpus("penn", tmp_path / "nowhere")
        with pytest.raises(UserError, match="pass --data DIR"):
            find_corpus("../penn")
