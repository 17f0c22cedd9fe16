"""Reading files that anyone may have written: plain files only, never more than a limit, and one line if it fails."""

import json
import stat
from pathlib import Path
from typing import Any

from highrank.errors import UserError

__all__ = ["JSON_LIMIT_BYTES", "check_safetensors_header", "file_size", "read_bytes", "read_json"]

# A byte of JSON can cost twenty of memory. What highrank writes takes kilobytes.
JSON_LIMIT_BYTES = 2 << 20
# Of a safetensors file: names, types and shapes. Ours take some kilobytes, and a byte of it can cost twenty of memory.
HEADER_LIMIT_BYTES = 1 << 20


def file_size(path: Path) -> int:
    """In bytes. Raises UserError if there is no plain file: a FIFO would wait for ever, a device never end."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: expected a plain file, got {'a folder' if path.is_dir() else 'a device or a pipe'}")
    return status.st_size


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The content of a plain file. Raises UserError if there is none, or more than ``limit_bytes``."""
    size = file_size(path)
    if size > limit_bytes:
        raise UserError(f"{path}: {size:,} bytes, more than the limit of {limit_bytes:,} for such a file")
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 2 MiB. Raises UserError if it is something else."""
    content = read_bytes(path, JSON_LIMIT_BYTES)
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, not UTF-8 text (at byte {error.start})") from error
    except ValueError as error:  # a number of too many digits is one that is no JSONDecodeError
        raise UserError(f"{path}: damaged, not valid JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{path}: damaged, JSON that is nested too deeply") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, expected a JSON object, got {type(value).__name__}")
    return value


def check_safetensors_header(path: Path) -> None:
    """The length that the header claims, before a parser makes room for it. Raises UserError if it cannot be."""
    size = file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, HEADER_LIMIT_BYTES):
        raise UserError(
            f"{path}: damaged or not a safetensors file (a header of {length:,} bytes in a file of {size:,}; "
            f"the limit is {HEADER_LIMIT_BYTES:,})"
        )
