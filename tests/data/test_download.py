"""Getting a corpus from servers that work, break off, lie, hang or are not there. All of them on this computer."""

import hashlib
import io
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from highrank.data import download
from highrank.data.catalog import CATALOG, CatalogEntry, Mirror, RemoteFile, Split
from highrank.data.download import get_corpus
from highrank.errors import UserError
from tests.data.server import MEMBERS, SPLITS, TEXTS, Handler, Served, Server, packed, plain, tarred, zipped


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)


@dataclass
class Place:
    """Where one test gets a corpus to, and what it was told meanwhile."""

    target: Path
    cache: Path
    notices: list[str] = field(default_factory=list)
    shown: list[tuple[str, int, int | None]] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.notices.append(text)

    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        assert unit == "bytes"
        self.shown.append((task, done, total))

    def get(self, *mirrors: Mirror, splits: dict[str, Split] = SPLITS) -> Path:
        entry = CatalogEntry("toy", "a toy", "none", 6, splits, mirrors)
        return get_corpus(entry, self.target, cache=self.cache, display=self)

    def holds_the_corpus(self) -> bool:
        held = {path.name: path.read_bytes() for path in self.target.iterdir()}
        return held == {f"{split}.txt": content for split, content in TEXTS.items()}

    def leftovers(self) -> list[Path]:
        beside = [path for path in self.target.parent.iterdir() if path != self.target and path != self.cache]
        return beside + [path for path in self.cache.rglob("*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "toy", tmp_path / "cache")


def test_three_plain_files(server: Server, place: Place) -> None:
    assert place.get(plain(server)) == place.target
    assert place.holds_the_corpus()
    assert place.leftovers() == []
    assert any("fetching" in notice for notice in place.notices)


def test_the_display_follows_each_file(server: Server, place: Place) -> None:
    mirror = plain(server)
    server.files["/plain/test.txt"].chunked = True  # its length is not said
    place.get(mirror)
    last = {task: (done, total) for task, done, total in place.shown}
    assert list(last) == [f"fetching {split}.txt" for split in TEXTS]
    sizes = {split: len(content) for split, content in TEXTS.items()}
    assert list(last.values()) == [(size, None if split == "test" else size) for split, size in sizes.items()]


def test_a_corpus_that_is_there_is_not_fetched_again(server: Server, place: Place) -> None:
    place.get(plain(server))
    server.requests.clear()
    assert place.get(plain(server)) == place.target
    assert server.requests == []


def test_a_folder_with_something_else_is_left_alone(server: Server, place: Place) -> None:
    place.target.mkdir()
    (place.target / "train.txt").write_bytes(b"mine\n")
    with pytest.raises(UserError, match=r"is not empty and does not hold toy as published .*--out"):
        place.get(plain(server))
    assert (place.target / "train.txt").read_bytes() == b"mine\n"
    assert server.requests == []


def test_an_empty_folder_is_filled(server: Server, place: Place) -> None:
    place.target.mkdir()
    place.get(plain(server))
    assert place.holds_the_corpus()


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("checksum", ["", None])
def test_an_archive(server: Server, place: Place, pack, prefix: str, checksum: str | None) -> None:  # type: ignore[no-untyped-def]
    outside = {"../outside.txt": b"no", "/tmp/outside.txt": b"no", "toy/readme": b"no"}
    content = pack(outside | {prefix + MEMBERS[split]: TEXTS[split] for split in TEXTS})
    place.get(packed(server, content, checksum=checksum))
    assert place.holds_the_corpus()
    assert place.leftovers() == []
    assert not (place.target.parent / "outside.txt").exists()


def test_a_member_that_is_a_link_is_not_a_member(server: Server, place: Place) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in MEMBERS.values():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(info)
    with pytest.raises(UserError, match=r"packed serves an archive without toy/toy.train.tokens"):
        place.get(packed(server, content.getvalue()))


class TestResuming:
    @pytest.fixture
    def mirror(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Mirror:
        monkeypatch.setattr(download, "CHUNK_BYTES", 10)  # what a broken connection loses is less than a chunk
        return packed(server, zipped({MEMBERS[split]: TEXTS[split] for split in TEXTS}))

    def ranges(self, server: Server) -> list[str | None]:
        return [wanted for path, wanted in server.requests]

    def test_a_dropped_connection_goes_on_where_it_stopped(self, server: Server, place: Place, mirror: Mirror) -> None:
        server.files["/packed.bin"].breaks = [100, 50]
        place.get(mirror)
        assert self.ranges(server) == [None, "bytes=100-", "bytes=150-"]
        assert place.holds_the_corpus()
        assert place.leftovers() == []

    def test_the_next_run_goes_on_too(self, server: Server, place: Place, mirror: Mirror) -> None:
        server.files["/packed.bin"].breaks = [100, 10, 10, 10]
        with pytest.raises(UserError, match="packed failed: "):
            place.get(mirror)
        server.requests.clear()
        place.get(mirror)
        assert self.ranges(server) == ["bytes=130-"]
        assert place.holds_the_corpus()

    def test_a_server_that_ignores_ranges(self, server: Server, place: Place, mirror: Mirror) -> None:
        server.files["/packed.bin"].breaks = [100]
        server.files["/packed.bin"].ranges = False
        place.get(mirror)
        assert self.ranges(server) == [None, "bytes=100-"]
        assert place.holds_the_corpus()

    def test_a_file_that_changed_meanwhile(self, server: Server, place: Place, mirror: Mirror) -> None:
        good = server.files["/packed.bin"].content
        server.files["/packed.bin"] = Served(b"?" * 5000, breaks=[100, 100, 100, 100])
        with pytest.raises(UserError):
            place.get(mirror)
        server.files["/packed.bin"] = Served(good, etag='"2"')
        server.requests.clear()
        place.get(mirror)
        assert self.ranges(server) == ["bytes=400-"]
        assert place.holds_the_corpus()

    def test_a_file_that_changed_without_a_word_is_fetched_from_its_start(
        self, server: Server, place: Place, mirror: Mirror
    ) -> None:
        good = server.files["/packed.bin"].content
        server.files["/packed.bin"] = Served(b"?" * 5000, breaks=[10, 10, 10, 10])
        with pytest.raises(UserError):
            place.get(mirror)
        server.files["/packed.bin"] = Served(good)
        place.get(mirror)
        assert self.ranges(server)[-2:] == ["bytes=40-", None]
        assert place.holds_the_corpus()

    def test_a_part_longer_than_the_file(self, server: Server, place: Place, mirror: Mirror) -> None:
        good = server.files["/packed.bin"].content
        server.files["/packed.bin"] = Served(b"?" * 9000, breaks=[5000, 10, 10, 10])
        with pytest.raises(UserError):
            place.get(mirror)
        server.files["/packed.bin"] = Served(good)
        place.get(mirror)
        assert place.holds_the_corpus()

    def test_without_anything_that_tells_versions_apart_it_starts_anew(
        self, server: Server, place: Place, mirror: Mirror
    ) -> None:
        server.files["/packed.bin"].etag = ""
        server.files["/packed.bin"].breaks = [100]
        place.get(mirror)
        assert self.ranges(server) == [None, None]
        assert place.holds_the_corpus()


class TestMirrors:
    def test_one_after_the_other_until_one_will_do(self, server: Server, place: Place) -> None:
        missing = plain(server, "missing")
        del server.files["/missing/valid.txt"]
        lying = plain(server, "lying")
        server.files["/lying/test.txt"].content = b"other\n"
        busy = plain(server, "busy")
        server.files["/busy/train.txt"].status = 503
        not_an_archive = packed(server, b"<html>", name="html", checksum=None)
        broken = packed(server, zipped(dict.fromkeys(MEMBERS.values(), b"x" * 999))[:-30], name="broken")
        dropping = packed(server, b"x" * 50_000, name="dropping")
        server.files["/dropping.bin"].breaks = [20_000, 0, 0, 0]
        place.get(missing, lying, busy, not_an_archive, broken, dropping, plain(server))
        assert place.holds_the_corpus()
        assert place.leftovers() == []
        skipped = [notice for notice in place.notices if notice.startswith("mirror skipped: ")]
        assert skipped[0] == "mirror skipped: missing answers 404 Not Found"
        assert skipped[1] == "mirror skipped: lying serves other content than expected (wrong checksum)"
        assert skipped[2].startswith("mirror skipped: busy failed: 503")
        assert skipped[3].startswith("mirror skipped: html serves an archive that cannot be read")
        assert skipped[4].startswith("mirror skipped: broken serves an archive that cannot be read")
        assert skipped[5].startswith("mirror skipped: dropping failed: ")
        assert len(skipped) == 6
        # A file with the wrong checksum is asked for once: again it would be the same.
        assert [path for path, _ in server.requests].count("/lying/test.txt") == 1

    def test_an_archive_of_other_texts(self, server: Server, place: Place) -> None:
        other = packed(server, zipped({MEMBERS[split]: b"other\n" for split in TEXTS}))
        with pytest.raises(UserError, match=r"packed serves something else: train.txt has another checksum"):
            place.get(other)
        assert not place.target.exists()
        assert place.leftovers() == []

    def test_without_a_checksum_the_number_of_tokens_is_held(self, server: Server, place: Place) -> None:
        splits = {split: Split(4 * 3000) for split in TEXTS}
        short = packed(server, zipped({MEMBERS[split]: TEXTS[split][:-1] + b" more\n" for split in TEXTS}))
        with pytest.raises(UserError, match=r"train.txt has 12001 tokens, not 12000"):
            place.get(short, splits=splits)
        server.files["/good.bin"] = Served(zipped({MEMBERS[split]: TEXTS[split] for split in TEXTS}))
        place.get(packed(server, b"", name="good", checksum=None), splits=splits)
        assert place.holds_the_corpus()

    def test_when_none_will_do_one_line_says_what_to_put_where(self, server: Server, place: Place) -> None:
        mirrors = plain(server, "one"), plain(server, "two")
        server.files.clear()
        with pytest.raises(UserError) as caught:
            place.get(*mirrors)
        message = str(caught.value)
        for part in ("one answers 404", "two answers 404", "train.txt", str(place.target), "--data DIR"):
            assert part in message
        assert "\n" not in message
        assert place.leftovers() == []

    @pytest.mark.parametrize("chunked", [True, False])
    def test_more_than_the_limit_is_not_taken(self, server: Server, place: Place, chunked: bool) -> None:
        server.files["/packed.bin"] = Served(b"x" * 300_000, chunked=chunked)
        with pytest.raises(UserError, match="packed sends more than 200000 bytes"):
            place.get(packed(server, b"", limit_bytes=200_000))
        assert place.leftovers() == []

    def test_an_archive_that_unpacks_to_too_much(self, server: Server, place: Place) -> None:
        bomb = zipped({MEMBERS[split]: b"a" * 1_000_000 for split in TEXTS})
        with pytest.raises(UserError, match="a file of more than 100000 bytes"):
            place.get(packed(server, bomb, limit_bytes=100_000))

    def test_a_tar_archive_that_is_too_long_to_read_through(
        self, server: Server, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "ARCHIVE_LIMIT_BYTES", 500_000)
        with pytest.raises(UserError, match="unpacks to more than 500000 bytes"):
            place.get(packed(server, tarred({"padding": b"a" * 1_000_000})))

    def test_nothing_is_unpacked_before_its_checksum_is_right(
        self, server: Server, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unpack(path: Path, file: RemoteFile, target: Path) -> None:
            raise AssertionError(f"{path} was opened")

        monkeypatch.setattr(download, "_unpack", unpack)
        lying = packed(server, zipped({MEMBERS[split]: TEXTS[split] for split in TEXTS}), checksum="md5:" + "0" * 32)
        with pytest.raises(UserError, match="packed serves other content than expected"):
            place.get(lying)
        assert place.leftovers() == []

    def test_the_words_of_a_server_are_shown_as_one_plain_line(
        self, server: Server, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rude = plain(server, "rude")
        server.files["/rude/train.txt"].status = 418
        words = "\x1b[2J\x1b[31mred" + 20_000 * "!"
        monkeypatch.setitem(Handler.responses, 418, (words, ""))  # type: ignore[arg-type]
        place.get(rude, plain(server))
        (skipped,) = [notice for notice in place.notices if notice.startswith("mirror skipped")]
        assert skipped.startswith(r"mirror skipped: rude answers 418 \x1b[2J")
        assert skipped.isprintable()
        assert len(skipped) < 1300


class AsIfHTTPS(requests.adapters.HTTPAdapter):
    """Sends what is meant for an HTTPS server to ours, which speaks plain HTTP."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        meant, request.url = request.url, self.server.url(urlsplit(request.url).path)
        response = super().send(request, **options)
        response.url, request.url = meant, meant
        return response


class TestHTTPS:
    @pytest.fixture(autouse=True)
    def _toy_example_has_https(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        adapter, plain_http = AsIfHTTPS(server), requests.adapters.HTTPAdapter()
        monkeypatch.setattr(download, "_reachable", set)
        monkeypatch.setattr(
            download._Session, "get_adapter", lambda self, url: adapter if url.startswith("https:") else plain_http
        )

    def mirror(self, server: Server, location: str) -> Mirror:
        content = zipped({MEMBERS[split]: TEXTS[split] for split in TEXTS})
        server.files["/here.zip"], server.files["/there.zip"] = Served(b"", location=location), Served(content)
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        return Mirror("toy.example", (RemoteFile("https://toy.example/here.zip", MEMBERS, checksum),))

    @pytest.mark.parametrize("location", ["/there.zip", "https://other.example/there.zip"])
    def test_a_redirection_within_https_is_followed(self, server: Server, place: Place, location: str) -> None:
        place.get(self.mirror(server, location))
        assert place.holds_the_corpus()

    def test_a_redirection_from_https_to_http_is_not_followed(self, server: Server, place: Place) -> None:
        mirror = self.mirror(server, server.url("/there.zip"))
        with pytest.raises(UserError, match=r"toy\.example leads from HTTPS to http://127\.0\.0\.1:"):
            place.get(mirror)
        assert [path for path, _ in server.requests] == ["/here.zip"]
        assert place.leftovers() == []

    def test_a_server_elsewhere_must_have_https(self, server: Server, place: Place) -> None:
        file = RemoteFile("http://toy.example/train.txt", {"train": None})
        place.get(Mirror("bare", (file,)), plain(server))
        assert place.notices[0] == "mirror skipped: bare does not use HTTPS: http://toy.example/train.txt"
        assert place.holds_the_corpus()


class TestNoNetwork:
    def test_nobody_answers(self, server: Server, place: Place) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/train.txt"
            start = time.monotonic()
            with pytest.raises(UserError, match=r"no network: 127\.0\.0\.1 cannot be reached; get train.txt") as caught:
                place.get(Mirror("gone", (RemoteFile(url, {"train": None}),)))
        assert time.monotonic() - start < 3
        assert "\n" not in str(caught.value)

    def test_names_that_take_for_ever_to_look_up(
        self, server: Server, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forever = threading.Event()
        monkeypatch.setattr(download, "CONNECT_S", 0.1)

        def hang(door: tuple[str, int], timeout: float) -> socket.socket:
            forever.wait(20)
            raise OSError("no such name")

        monkeypatch.setattr(download.socket, "create_connection", hang)
        start = time.monotonic()
        with pytest.raises(UserError, match="no network"):
            place.get(plain(server), plain(server, "two"))
        assert time.monotonic() - start < 5
        forever.set()

    def test_a_mirror_that_is_down_is_skipped(self, server: Server, place: Place) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            gone = RemoteFile(f"http://127.0.0.1:{closed.getsockname()[1]}/train.txt", {"train": None})
            place.get(Mirror("gone", (gone,)), plain(server))
        assert place.holds_the_corpus()
        assert place.notices[0] == "mirror skipped: gone cannot be reached"


def test_a_cache_that_cannot_be_written(server: Server, place: Place) -> None:
    place.cache.write_bytes(b"a file")
    with pytest.raises(UserError, match=r"cannot write .*HIGHRANK_CACHE"):
        place.get(plain(server))


def test_the_catalog_is_sound() -> None:
    for entry in CATALOG.values():
        assert tuple(entry.splits) == ("train", "valid", "test")
        for mirror in entry.mirrors:
            assert sorted(split for file in mirror.files for split in file.members) == ["test", "train", "valid"]
            for file in mirror.files:
                assert file.url.startswith("https://")
                assert file.checksum is not None
