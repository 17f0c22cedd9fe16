"""Getting a corpus over HTTPS, past redirections, and where nobody answers."""

import hashlib
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from highrank.data import download
from highrank.data.catalog import Mirror, RemoteFile
from highrank.errors import UserError
from tests.data.conftest import Place
from tests.data.server import MEMBERS, TEXTS, Served, Server, plain, zipped


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
