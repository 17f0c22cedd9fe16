"""Getting a corpus: plain or packed, whole or broken off. The servers are on this computer."""

import errno
import io
import tarfile
import threading
from multiprocessing import get_context
from multiprocessing.queues import Queue

import pytest

from highrank.data import download
from highrank.data.catalog import Mirror
from highrank.errors import UserError
from tests.data.conftest import Place
from tests.data.server import MEMBERS, TEXTS, Served, Server, packed, plain, tarred, zipped


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


def test_a_cache_that_cannot_be_written(server: Server, place: Place) -> None:
    place.cache.write_bytes(b"a file")
    with pytest.raises(UserError, match=r"cannot write .*HIGHRANK_CACHE"):
        place.get(plain(server))


class Heard(Place):
    """A place in a process of its own, whose notices are heard in this one."""

    def __init__(self, place: Place, heard: "Queue[str]") -> None:
        super().__init__(place.target, place.cache)
        self.heard = heard

    def message(self, text: str) -> None:
        self.heard.put(text)


class TestTwoProcesses:
    def test_the_second_waits_and_takes_what_the_first_has_fetched(self, server: Server, place: Place) -> None:
        mirror, processes = plain(server), get_context("spawn")
        gate = server.files["/plain/valid.txt"].gate = threading.Event()
        first: Queue[str] = processes.Queue()
        second: Queue[str] = processes.Queue()
        one = processes.Process(target=Heard(place, first).get, args=(mirror,), daemon=True)
        other = processes.Process(target=Heard(place, second).get, args=(mirror,), daemon=True)
        one.start()
        while "valid.txt" not in first.get(timeout=60):
            pass
        other.start()
        assert second.get(timeout=60) == "waiting for another process that is fetching toy"
        gate.set()
        for process in (one, other):
            process.join(60)
            assert process.exitcode == 0
        assert second.get(timeout=60) == f"toy is already in {place.target}"
        assert [path for path, _ in server.requests] == [f"/plain/{split}.txt" for split in TEXTS]
        assert place.holds_the_corpus()
        assert place.leftovers() == []

    def test_the_second_fetches_after_a_first_that_was_killed(self, server: Server, place: Place) -> None:
        mirror, processes = plain(server), get_context("spawn")
        gate = server.files["/plain/valid.txt"].gate = threading.Event()
        heard: Queue[str] = processes.Queue()
        killed = processes.Process(target=Heard(place, heard).get, args=(mirror,), daemon=True)
        killed.start()
        while "valid.txt" not in heard.get(timeout=60):
            pass
        killed.kill()
        killed.join(60)
        gate.set()
        place.get(mirror)
        assert place.holds_the_corpus()

    def test_a_file_system_without_locks(self, server: Server, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*arguments: object) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr("fcntl.flock", missing)
        with pytest.raises(UserError, match=r"cannot lock .*toy\.lock .* HIGHRANK_CACHE") as caught:
            place.get(plain(server))
        assert "\n" not in str(caught.value)
        assert server.requests == []
