"""Files and folders that are whole or absent: written under a temporary name, synced, then renamed."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

from highrank.errors import UserError

__all__ = [
    "append_line",
    "explained",
    "file_sha256",
    "install_folder",
    "is_free",
    "leftovers",
    "new_file",
    "new_folder",
    "remove_folder",
    "remove_leftovers",
    "set_aside",
    "temporary_folder",
    "to_disk",
    "write_all",
    "write_bytes",
    "write_text",
]

TEMPORARY = ".new-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to. On success it replaces ``path`` in one step; else it is removed."""
    temporary = _temporary_name(path.parent)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``path`` on success. Raises FileExistsError if something is there."""
    with temporary_folder(path.parent) as temporary:
        yield temporary
        if not install_folder(temporary, path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, which is made if need be. Whatever of it is still there at the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary_name(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_free(path: Path) -> bool:
    """Can a new folder have this name? Where nothing is, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def install_folder(temporary: Path, target: Path) -> bool:
    """Rename a finished folder into place, after its files have reached the disk.

    False, and nothing changed, if ``target`` is there already and not empty. Both must be on one file system.
    """
    for path in [*temporary.iterdir(), temporary]:
        _sync(path)
    try:
        if target.is_dir():
            target.rmdir()  # only an empty folder goes, and not every system renames onto one
        os.rename(temporary, target)
    except OSError:
        if target.exists():
            return False
        raise
    _sync(target.parent)
    return True


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only one or a missing permission into one line for the user that names ``path``."""
    try:
        yield
    except Exception as error:
        numbers = _error_numbers(error)
        if numbers.intersection(FULL):
            raise UserError(
                f"{path}: no space left to write it; what was there before stands. Free some space and try again"
            ) from error
        if errno.EROFS in numbers:
            raise UserError(f"{path}: cannot be written, its file system is read-only") from error
        if isinstance(error, PermissionError) or numbers.intersection(REFUSED):
            raise UserError(f"{path}: no permission to write there") from error
        if isinstance(error, IsADirectoryError):
            raise UserError(f"{path}: cannot be written, a folder is in its place") from error
        raise


def append_line(path: Path, line: str, *, to_disk: bool = False) -> None:
    """Append ``line`` and a line end to ``path``. If that fails the file is as it was before.

    A last line without an end, which a kill cut short, is ended first, so that it takes no other line with it.
    ``to_disk``: return only when the line has reached the disk. Raises UserError as ``explained`` does.
    """
    with explained(path), path.open("ab+", buffering=0) as file:  # unbuffered: nothing is left to be written at closing
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = f"\n{line}"
        try:
            write_all(file, f"{line}\n".encode())
        except OSError:
            file.truncate(size)
            raise
        if to_disk:
            os.fsync(file.fileno())


def write_all(file: RawIOBase, content: bytes) -> None:
    """Write to an unbuffered file: a disk that fills up takes a part first, and refuses only the rest."""
    while content:
        content = content[file.write(content) or 0 :]


def leftovers(*folders: Path) -> Iterator[Path]:
    """What processes were writing in ``folders``: those at work, and those that were killed."""
    for folder in folders:
        yield from folder.glob(f"{TEMPORARY}*")


def remove_leftovers(*folders: Path) -> None:
    """Remove what processes that were killed in the middle of writing left in ``folders``."""
    for leftover in leftovers(*folders):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Give ``path`` a temporary name beside it, at once, under which it may be removed slowly."""
    aside = _temporary_name(path.parent)
    os.rename(path, aside)
    return aside


def remove_folder(path: Path) -> None:
    """Remove ``path`` with all that is in it. A kill in the middle leaves no half of it under its own name."""
    shutil.rmtree(set_aside(path))


def to_disk(path: Path) -> None:
    """Wait until the file has reached the disk; where the system can be asked to, the next reading is from there."""
    _sync(path)
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error_numbers(error: Exception) -> set[int]:
    """The system's number of ``error``; of libraries in Rust, which leave it in the text of their own, from there."""
    numbers = {int(number) for number in re.findall(r"os error (\d+)", str(error))}
    if isinstance(error, OSError) and error.errno is not None:
        numbers.add(error.errno)
    return numbers


def _temporary_name(parent: Path) -> Path:
    # Not tempfile: what it makes, only the owner may read.
    return parent / f"{TEMPORARY}{uuid.uuid4().hex}"


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handles to folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
