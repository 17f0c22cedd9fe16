"""Files and folders that are whole or absent: written under a temporary name, synced, then renamed."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from highrank.errors import UserError

__all__ = [
    "explained",
    "file_sha256",
    "install_folder",
    "new_file",
    "new_folder",
    "remove_leftovers",
    "temporary_folder",
    "write_bytes",
    "write_text",
]

TEMPORARY = ".new-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    """Turn a full disk or a missing permission into one line for the user that names ``path``."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        # safetensors wraps the system's error in its own, and leaves the number in its text only.
        if number in FULL or any(f"os error {code}" in str(error) for code in FULL):
            raise UserError(
                f"{path}: no space left to write it; what was there before stands. Free some space and try again"
            ) from error
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: no permission to write there") from error
        if isinstance(error, IsADirectoryError):
            raise UserError(f"{path}: cannot be written, a folder is in its place") from error
        raise


def remove_leftovers(*folders: Path) -> None:
    """Remove what processes that were killed in the middle of writing left in ``folders``."""
    for folder in folders:
        for leftover in folder.glob(f"{TEMPORARY}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
