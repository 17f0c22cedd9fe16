"""Mirrors that lie, break off or send too much: the next one is taken, or one line says what to do."""

from pathlib import Path

import pytest

from highrank.data import download
from highrank.data.catalog import CATALOG, RemoteFile, Split
from highrank.errors import UserError
from tests.data.conftest import Place
from tests.data.server import MEMBERS, TEXTS, Handler, Served, Server, packed, plain, tarred, zipped


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


def test_the_catalog_is_sound() -> None:
    for entry in CATALOG.values():
        assert tuple(entry.splits) == ("train", "valid", "test")
        for mirror in entry.mirrors:
            assert sorted(split for file in mirror.files for split in file.members) == ["test", "train", "valid"]
            for file in mirror.files:
                assert file.url.startswith("https://")
                assert file.checksum is not None
