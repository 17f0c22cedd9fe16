"""Fetching a catalogued corpus: mirrors in turn, downloads that resume, nothing used before it is verified."""

import contextlib
import gzip
import hashlib
import os
import shutil
import socket
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast
from urllib.parse import unquote, urljoin, urlsplit

import pooch
import requests
from filelock import FileLock, Timeout

from highrank.data.catalog import CatalogEntry, Mirror, RemoteFile, folder_problem, store_folder
from highrank.data.encoding import cache_folder
from highrank.data.kjv import build_kjv
from highrank.errors import UserError, one_line
from highrank.files import install_folder, is_free, temporary_folder
from highrank.progress import SILENT, Display

__all__ = ["get_corpus"]

CONNECT_S = 4.0
READ_S = 20.0
RETRIES = 3
CHUNK_BYTES = 1 << 14
# An archive may hold more than what is wanted of it, but reading through it must end.
ARCHIVE_LIMIT_BYTES = 1 << 30
# The most that is read of an archive at once, and the longest header in it.
PIECE_BYTES = 1 << 20
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    ValueError,  # a number that is none, an offset before the beginning
    OverflowError,
    RuntimeError,  # zipfile: a password, or a compression it does not know
)
# Some servers refuse the names under which Python's libraries introduce themselves.
USER_AGENT = "highrank (language-model corpora)"
WRONG_CHECKSUM = "serves other content than expected (wrong checksum)"


class MirrorError(Exception):
    """This mirror will not do, and trying it again will not help."""


def get_corpus(
    entry: CatalogEntry, target: Path | None = None, *, cache: Path | None = None, display: Display = SILENT
) -> Path:
    """Put the corpus ``entry`` into the folder ``target`` (default: its place in the user's own store); return it.

    The folder appears whole or not at all. If it holds the corpus already nothing is fetched. An interrupted download
    goes on where it stopped at the next call; while another process is fetching the same corpus this one waits.
    ``display`` is told what is fetched and which mirrors fail.

    Raises UserError, one line: the folder holds something else, no network, or no mirror that serves the corpus.
    """
    target = target or store_folder() / entry.name
    if _is_there(entry, target, display):
        return target
    if not entry.mirrors:
        return build_kjv(target, display=display)
    downloads = (cache or cache_folder()) / "downloads" / entry.name
    try:
        downloads.parent.mkdir(parents=True, exist_ok=True)
        with _alone(entry, downloads, display):
            if not _is_there(entry, target, display):  # the process that was waited for may have put it there
                downloads.mkdir(exist_ok=True)
                _from_mirrors(entry, target, downloads, display)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or target} ({error.strerror or error}): "
            "choose other folders with --out and HIGHRANK_CACHE"
        ) from error
    return target


def _is_there(entry: CatalogEntry, target: Path, display: Display) -> bool:
    """Does ``target`` hold the corpus? Raises UserError if it holds something else."""
    if is_free(target):
        return False
    problem = folder_problem(entry, target)
    if problem is not None:
        raise UserError(
            f"{target} is not empty and does not hold {entry.name} as published ({problem}): "
            "move it away, or give another folder with --out"
        )
    display.message(f"{entry.name} is already in {target}")
    return True


@contextlib.contextmanager
def _alone(entry: CatalogEntry, downloads: Path, display: Display) -> Iterator[None]:
    """Inside, no other process writes into the folder ``downloads``. Waits for its turn."""
    path = downloads.with_name(f"{downloads.name}.lock")  # not in the folder, which goes at the end
    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            display.message(f"waiting for another process that is fetching {entry.name}")
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot lock {path} ({error.strerror or error}): set HIGHRANK_CACHE to a folder that can be written, on a "
            "file system with locks"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            path.unlink()  # while it is held: who waits for it sees that it is gone, and locks a new one
        lock.release()


def _from_mirrors(entry: CatalogEntry, target: Path, downloads: Path, display: Display) -> None:
    by_hand = (
        f"get train.txt, valid.txt and test.txt by other means and put them into {target}, or pass their folder as "
        "--data DIR"
    )
    reachable = _reachable({file.url for mirror in entry.mirrors for file in mirror.files})
    if not reachable:
        hosts = sorted({urlsplit(file.url).hostname or file.url for mirror in entry.mirrors for file in mirror.files})
        raise UserError(f"no network: {', '.join(hosts)} cannot be reached; {by_hand}")
    problems = []
    for mirror in entry.mirrors:
        try:
            if not all(file.url in reachable for file in mirror.files):
                raise MirrorError("cannot be reached")
            _from_mirror(entry, mirror, target, downloads, display)
            return
        except MirrorError as error:
            problems.append(one_line(f"{mirror.name} {error}"))  # some of it is the server's own words
            display.message(f"mirror skipped: {problems[-1]}")
    raise UserError(f"no mirror serves {entry.name} ({'; '.join(problems)}); {by_hand}")


def _from_mirror(entry: CatalogEntry, mirror: Mirror, target: Path, downloads: Path, display: Display) -> None:
    with temporary_folder(target.parent) as temporary:
        fetched = []
        for file in mirror.files:
            fetched.append(_fetch(file, downloads, display))
            _unpack(fetched[-1], file, temporary)
        problem = folder_problem(entry, temporary)
        for path in fetched:  # used, or of no use
            path.unlink(missing_ok=True)
        if problem is not None:
            raise MirrorError(f"serves something else: {problem}")
        if not install_folder(temporary, target) and folder_problem(entry, target) is not None:
            raise UserError(f"{target} was filled with something else while {entry.name} was being fetched")
    shutil.rmtree(downloads, ignore_errors=True)  # beginnings from other mirrors
    display.message(f"{entry.name} is in {target}")


def _fetch(file: RemoteFile, downloads: Path, display: Display) -> Path:
    """The file, verified, in the folder of downloads. Raises MirrorError if it cannot be had."""
    # The address is part of the name, so that one mirror's beginning is never continued with another's rest.
    own_name = PurePosixPath(unquote(urlsplit(file.url).path)).name
    name = hashlib.sha256(file.url.encode()).hexdigest()[:16] + "-" + own_name
    pooch.get_logger().setLevel("ERROR")  # its retries are told by our notices
    fetcher = pooch.Pooch(
        path=downloads, base_url="", registry={name: file.checksum}, urls={name: file.url}, retry_if_failed=RETRIES
    )
    try:
        return Path(fetcher.fetch(name, downloader=ResumingDownloader(file, downloads / f"{name}.part", display)))
    except requests.RequestException as error:
        raise MirrorError(f"failed: {_short(error)}") from error
    except ValueError as error:
        raise MirrorError(WRONG_CHECKSUM) from error


class ResumingDownloader:
    """What pooch calls, once for each attempt, to get a file.

    Bytes collect in ``part``, which stays when an attempt breaks off; the next one, in this run or a later one, asks
    only for the rest, and only if the server says that the file is still the same. Raises MirrorError where another
    attempt cannot help, and requests.RequestException where it may.
    """

    def __init__(self, file: RemoteFile, part: Path, display: Display) -> None:
        self.file = file
        self.part = part
        self.validator = part.with_name(part.name + ".validator")
        self.display = display
        self.whole = False  # an attempt has brought the whole file, from its first byte

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        if self.whole:  # asked again because the checksum was wrong: the same bytes would come
            raise MirrorError(WRONG_CHECKSUM)
        offset, headers = self._state(), {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": self.validator.read_text()}
        _check_address(url)
        with (
            _Session() as session,
            session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response,
        ):
            offset = self._agreed_offset(response, offset)
            self._receive(response, offset)
        self.whole = offset == 0
        self.validator.unlink(missing_ok=True)
        os.replace(self.part, output_file)

    def _state(self) -> int:
        """How many bytes are here that can be continued."""
        if self.part.is_file() and self.validator.is_file():
            return self.part.stat().st_size
        return 0

    def _agreed_offset(self, response: requests.Response, offset: int) -> int:
        """Where the bytes of this answer start."""
        if response.status_code == 206 and offset:
            start, same = f"bytes {offset}-", _validator(response) in ("", self.validator.read_text())
            if response.headers.get("Content-Range", "").startswith(start) and same:
                self.display.message(f"going on at byte {offset} of {self.file.url}")
                return offset
        if response.status_code in (206, 416):
            self._forget()
            raise requests.ConnectionError("the server does not continue the file where asked")
        if response.status_code >= 500 or response.status_code == 429:
            response.raise_for_status()
        if response.status_code != 200:
            raise MirrorError(f"answers {response.status_code} {response.reason}")
        self._forget()
        if validator := _validator(response):
            self.validator.write_text(validator)
        self.display.message(f"fetching {self.file.url}")
        return 0

    def _receive(self, response: requests.Response, offset: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdecimal() else None
        done = offset
        task = f"fetching {self.part.name.split('-', 1)[-1].removesuffix('.part')}"
        with self.part.open("ab" if offset else "wb") as part:
            for chunk in response.iter_content(CHUNK_BYTES):
                done += len(chunk)
                if max(done, total or 0) > self.file.limit_bytes:
                    self._forget()
                    raise MirrorError(f"sends more than {self.file.limit_bytes} bytes")
                part.write(chunk)
                self.display.progress(task, done, total, unit="bytes")
        if total is not None and done != total:
            raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where an answer sends us on to. Raises MirrorError if that leaves HTTPS."""
        target = super().get_redirect_target(resp)
        if target is not None:
            address = urljoin(resp.url, target)
            if urlsplit(resp.url).scheme == "https" and urlsplit(address).scheme != "https":
                raise MirrorError(f"leads from HTTPS to {address}")
            _check_address(address)
        return target


def _check_address(url: str) -> None:
    """HTTPS, or a server on this computer. Raises MirrorError."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise MirrorError(f"does not use HTTPS: {url}")


def _validator(response: requests.Response) -> str:
    """What tells one version of a file on a server from another; "" if the server says nothing that is certain."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _unpack(path: Path, file: RemoteFile, target: Path) -> None:
    """Write the splits that ``path`` gives to their fixed names in ``target``: no name in an archive is ever a path."""
    wanted = {member: split for split, member in file.members.items() if member is not None}
    if not wanted:
        (only,) = file.members
        shutil.copyfile(path, target / f"{only}.txt")
        return
    try:
        for member, stream in _members(path):
            split = wanted.pop(member, None)
            if split is not None:
                with (target / f"{split}.txt").open("wb") as output:
                    _copy(stream, output, file.limit_bytes)
            if not wanted:
                break
    except ARCHIVE_ERRORS as error:
        raise MirrorError(f"serves an archive that cannot be read: {_short(error)}") from error
    if wanted:
        raise MirrorError(f"serves an archive without {', '.join(wanted)}")


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each plain file in a zip or tar archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile("it is packed in a way that is not read here")
                if not info.filename.endswith("/"):  # a folder; is_dir() fails where the name is empty
                    with archive.open(info) as stream:
                        yield info.filename.removeprefix("./"), stream
        return
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = cast(IO[bytes], _TarStream(gzip.GzipFile(fileobj=file) if packed else file))
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.name.removeprefix("./"), content


class _TarStream:
    """What tarfile reads an archive from: forwards only, to a limit, and never much at once.

    tarfile believes headers: one that claims a name of gigabytes is read whole, one of a negative size read again.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self.stream = stream

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, position: int) -> int:
        if position < self.stream.tell() - 1:
            raise tarfile.ReadError("its parts overlap")
        if position > ARCHIVE_LIMIT_BYTES:
            raise tarfile.ReadError(f"it unpacks to more than {ARCHIVE_LIMIT_BYTES} bytes")
        return self.stream.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= PIECE_BYTES:
            raise tarfile.ReadError(f"it has a header of more than {PIECE_BYTES} bytes")
        return self.stream.read(size)


def _copy(stream: IO[bytes], output: IO[bytes], limit_bytes: int) -> None:
    done = 0
    while chunk := stream.read(CHUNK_BYTES):
        done += len(chunk)
        if done > limit_bytes:
            raise MirrorError(f"serves an archive with a file of more than {limit_bytes} bytes")
        output.write(chunk)


def _reachable(urls: Iterable[str]) -> set[str]:
    """The addresses whose servers (or the proxy on the way) accept a connection.

    All are asked at the same time, in threads that may be left behind, since looking up a name can hang for long:
    without a network the answer takes one timeout, not one for each mirror.
    """
    doors = {url: _door(url) for url in urls}
    open_doors: set[tuple[str, int]] = set()

    def knock(door: tuple[str, int]) -> None:
        with contextlib.suppress(OSError, UnicodeError), socket.create_connection(door, timeout=CONNECT_S):
            open_doors.add(door)

    threads = [threading.Thread(target=knock, args=(door,), daemon=True) for door in set(doors.values())]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CONNECT_S + 1
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {url for url, door in doors.items() if door in open_doors}


def _door(url: str) -> tuple[str, int]:
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    parts = urlsplit(requests.utils.prepend_scheme_if_needed(proxy, "http") if proxy else url)
    return parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 1080)


def _short(error: BaseException) -> str:
    """The first line of an error's innermost reason: what libraries wrap around it says less."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return (str(error).splitlines() or [type(error).__name__])[0]
