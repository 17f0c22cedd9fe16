"""Disks that are full, and folders that nobody can write into: real mounts, where this user may mount."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Unavailable", "fill", "mounted", "read_only"]

DISK_BYTES = 8 << 20


class Unavailable(Exception):  # noqa: N818 - not an error: this machine or user cannot cause that fault
    """Why a fault cannot be caused here."""


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A small disk of its own. Raises Unavailable where none can be mounted."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[str]:
    """Nobody can write into ``folder``; gives the words for that. Permissions do not bind root: for it, a mount."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        _mount("--bind", str(folder), str(folder))
        try:
            _mount("-o", "remount,bind,ro", str(folder))
            yield "read-only"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        yield "no permission"
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def _mount(*arguments: str) -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("mounting a file system needs Linux and root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"a file system cannot be mounted here: {done.stderr.strip()}")


def fill(filler: Path, *, leave: int = 0) -> None:
    """Take all space of the disk but ``leave`` bytes."""
    filler.unlink(missing_ok=True)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(filler, max(0, filler.stat().st_size - leave))
