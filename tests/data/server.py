"""A server on this computer with a small corpus, plain or packed; it breaks off, lies or sends on where told so."""

import hashlib
import io
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from highrank.data.catalog import Mirror, RemoteFile, Split

__all__ = ["MEMBERS", "SPLITS", "TEXTS", "Handler", "Served", "Server", "packed", "plain", "tarred", "zipped"]

TEXTS = {split: f"some {split} text\n".encode() * 3000 for split in ("train", "valid", "test")}
SPLITS = {split: Split(4 * 3000, f"sha256:{hashlib.sha256(content).hexdigest()}") for split, content in TEXTS.items()}


@dataclass
class Served:
    """A file on the server; ``breaks`` holds, for the next requests, after how many bytes the connection drops.

    ``gate``: until it is set, no more than the first half is sent.
    """

    content: bytes
    etag: str = '"1"'
    ranges: bool = True
    status: int = 200
    breaks: list[int] = field(default_factory=list)
    chunked: bool = False
    location: str = ""
    gate: threading.Event | None = None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        served = self.server.files.get(self.path)
        self.close_connection = True
        if served and served.location:
            self.send_response(302)
            self.send_header("Location", served.location)
            self.end_headers()
            return
        if served is None or served.status != 200:
            self.send_error(served.status if served else 404)
            return
        start = 0
        if wanted and served.ranges and self.headers.get("If-Range") == served.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
        else:
            self.send_response(200)
        if served.etag:
            self.send_header("ETag", served.etag)
        if not served.chunked:
            self.send_header("Content-Length", str(len(served.content) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        stop = start + served.breaks.pop(0) if served.breaks else len(served.content)
        if served.gate:
            half = (start + stop) // 2
            self.wfile.write(served.content[start:half])
            served.gate.wait(60)
            start = half
        self.wfile.write(served.content[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        pass


def plain(server: Server, name: str = "plain") -> Mirror:
    """A mirror with the three texts as they are."""
    files = []
    for split, content in TEXTS.items():
        path = f"/{name}/{split}.txt"
        server.files.setdefault(path, Served(content))
        files.append(RemoteFile(server.url(path), {split: None}, SPLITS[split].checksum))
    return Mirror(name, tuple(files))


def zipped(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


MEMBERS = {split: f"toy/toy.{split}.tokens" for split in TEXTS}


def packed(server: Server, content: bytes, *, name: str = "packed", checksum: str | None = "", **more: int) -> Mirror:
    """A mirror with an archive."""
    server.files.setdefault(f"/{name}.bin", Served(content))
    if checksum == "":
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    return Mirror(name, (RemoteFile(server.url(f"/{name}.bin"), MEMBERS, checksum, **more),))
