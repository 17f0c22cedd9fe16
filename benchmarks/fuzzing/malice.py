"""Damage made with malice: for each kind of file a list of all that a reader may trip over."""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.archives import BOMB_BYTES, tars, zips
from benchmarks.fuzzing.damage import DEEP, DTYPES, Damage, written
from benchmarks.fuzzing.pickles import arrays, payloads, pickled

__all__ = ["deliberate"]

MIB = 1 << 20


def deliberate(kind: str, good: bytes, marker: Path) -> Iterator[Damage]:
    """The list of damages for a file of this kind: json, lines, toml, setting, text, words, npy, safetensors, pt,
    legacy, npz, zip, tar, tgz."""
    yield from _in_its_place()
    yield from (written(f"cut at {length}", good[:length]) for length in _boundaries(kind, good))
    for name, payload in payloads(marker).items():
        yield written(f"pickle: {name}", payload)
    if kind in ("json", "lines", "toml", "setting", "text", "words"):
        yield from _texts()
    if kind == "safetensors":
        yield from _safetensors(good)
    if kind in ("pt", "legacy"):
        yield from pickled(marker, zipped=kind == "pt")
    if kind in ("npz", "npy"):
        yield from arrays(marker, zipped=kind == "npz")
    if kind in ("pt", "npz", "zip"):
        yield from zips(good)
    if kind in ("tar", "tgz"):
        yield from tars(good, kind)


def _in_its_place() -> Iterator[Damage]:
    def replaced(what: str, make: Callable[[Path], object]) -> Damage:
        def apply(path: Path) -> None:
            path.unlink()
            make(path)

        return Damage(what, apply)

    def sparse(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(BOMB_BYTES)

    yield replaced("missing", lambda path: None)
    yield written("empty", b"")
    yield replaced("a folder", Path.mkdir)
    yield replaced("a FIFO", os.mkfifo)
    yield replaced("a link to nowhere", lambda path: path.symlink_to("nowhere"))
    yield replaced("a link to itself", lambda path: path.symlink_to(path.name))
    yield replaced("a link to endless zeros", lambda path: path.symlink_to("/dev/zero"))
    yield replaced("a link to a folder", lambda path: path.symlink_to("/proc"))
    yield Damage("oversized", sparse)


def _boundaries(kind: str, good: bytes) -> list[int]:
    cuts = {1, 7, 8, 9, len(good) // 2, len(good) - 1}
    if kind == "safetensors":
        header = 8 + int.from_bytes(good[:8], "little")
        tensors = json.loads(good[8:header])
        tensors.pop("__metadata__", None)
        cuts |= {header - 1, header, header + 1} | {header + value["data_offsets"][1] for value in tensors.values()}
    if kind in ("pt", "npz", "zip"):
        for signature in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04"):
            at = good.rfind(signature)
            cuts |= {at, at + 4, at + 20}
    if kind in ("tar", "tgz"):
        cuts |= {18, 511, 512, 513, 1024, len(good) - 8, len(good) - 512, len(good) - 1024}
    return sorted(cut for cut in cuts if 0 < cut < len(good))


def _texts() -> Iterator[Damage]:
    for what, content in {
        "[ nested": b"[" * DEEP,
        "{ nested": b'{"a":' * DEEP,
        "[] nested": b"[" * DEEP + b"]" * DEEP,
        "a TOML value nested": b"a = " + b"[" * DEEP + b"]" * DEEP,
        "TOML tables nested": b"a = " + b"{a=" * DEEP + b"1" + b"}" * DEEP,
        "a dotted key": b".".join([b"a"] * 20_000) + b" = 1",
        "a long number": b"9" * 100_000,
        "a long number in TOML": b"[train]\nlr = " + b"9" * 100_000,
        "a long hexadecimal number": b"[train]\nseed = 0x" + b"f" * 20_000,
        "a number beyond all": b"[train]\nlr = 1e999\nseed = 1",
        "null": b"null",
        "a number": b"1",
        "a string": b'"text"',
        "a list": b"[1, 2]",
        "an empty object": b"{}",
        "empty lists": b"[]\n" * 1000,
        "not a number": b"NaN",
        "escapes in a key": b'{"\\u001b[31m\\nred\\u0000": {"\\ud800": 1}}',
        "escapes in a TOML key": b'["\\u001b[31m\\nred"]\na = 1',
        "escapes in a TOML value": b'[model]\nhead = "\\u001b[31m\\nred\\u0000"',
        "a long TOML key": b"a" * 50_000 + b" = 1",
        "a long value": b'[model]\nhead = "' + b"x" * 50_000 + b'"',
        "lists in lists": lambda: json.dumps([[[]] * 1000] * 100).encode(),
        "UTF-16": "some text\n".encode("utf-16"),
        "a mark of byte order": b"\xef\xbb\xbf{}",
        "not UTF-8": b"caf\xe9 \xff\xfe\n",
        "cut within a character": "naïve".encode()[:3],
        "a surrogate": b"\xed\xa0\x80\n",
        "NULs": bytes(5000),
        "control characters": bytes(range(32)) * 50,
        "other line ends": "a\u2028b\x85c\x0bd\x1ce\r\n".encode() * 20,
        "a giant line": lambda: b"word " * (MIB // 2),
        "a giant word": lambda: b"x" * (24 * MIB),
        "random bytes": Random(1).randbytes(50_000),
        "many words": lambda: " ".join(f"{number:x}" for number in range(40_000)).encode() + b"\n",
        "two values": b"1\nx = 2",
        "a comment": b"# nothing",
        "an empty line": b"\n",
        "a date": b"2020-01-01T00:00:00",
    }.items():
        yield written(what, content)


def _safetensors(good: bytes) -> Iterator[Damage]:
    end = 8 + int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8:end]), good[end:]
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    first, second = list(tensors)[:2]

    def made(what: str, header: object, data: bytes = data) -> Damage:
        def content() -> bytes:
            value = header() if callable(header) else header
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            return len(text).to_bytes(8, "little") + text + data

        return written(what, content)

    def many() -> object:
        return {f"{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}

    for length in (0, 1, 2, end - 9, end - 7, len(good) - 8, len(good), 1 << 31, 1 << 40, 1 << 60, 1 << 63, 2**64 - 1):
        yield written(f"header length {length}", length.to_bytes(8, "little") + good[8:])
    offsets = tensors[first]["data_offsets"]
    claims: Mapping[str, Any] = {
        "2^50 elements": {"shape": [1 << 50]},
        "shape that overflows": {"shape": [1 << 32, 1 << 32, 4]},
        "negative shape": {"shape": [-1, -4]},
        "shape of no elements": {"shape": [0, 1 << 62]},
        "2^50 bytes": {"shape": [1 << 48], "data_offsets": [0, 1 << 50]},
        "offsets backwards": {"data_offsets": offsets[::-1]},
        "negative offsets": {"data_offsets": [-8, offsets[1]]},
        "offsets that overlap": {"data_offsets": tensors[second]["data_offsets"]},
        "offsets beyond the end": {"data_offsets": [len(data), len(data) + offsets[1] - offsets[0]]},
        "many dimensions": {"shape": [1] * 1000 + tensors[first]["shape"]},
    }
    for what, claim in claims.items():
        yield made(what, header | {first: tensors[first] | claim})
    for dtype in DTYPES:
        yield made(f"dtype {dtype}", header | {first: tensors[first] | {"dtype": dtype}})
    same = [name for name in tensors if tensors[name]["shape"] == tensors[first]["shape"]]
    yield made("two tensors swapped", header | {same[0]: header[same[-1]], same[-1]: header[same[0]]})
    biases = [name for name in tensors if "bias" in name][:2]
    yield made("two biases swapped", header | {biases[0]: header[biases[1]], biases[1]: header[biases[0]]})
    yield made("without metadata", tensors)
    yield made("other metadata", header | {"__metadata__": {"sha256": "0" * 64}})
    yield made("metadata of numbers", header | {"__metadata__": {"sha256": 1}})
    yield made(
        "a tensor twice", json.dumps(header).encode()[:-1] + b"," + json.dumps({first: tensors[first]})[1:].encode()
    )
    yield made("a tensor missing", {name: value for name, value in header.items() if name != first})
    yield made("header nested", b"[" * DEEP + b"]" * DEEP)
    yield made("metadata nested", b'{"__metadata__":' + b'{"a":' * DEEP + b"}" * (DEEP + 1))
    yield made("many empty tensors", many, b"")
    yield made("a long name", header | {"x" * 300_000: header[first]})
    yield made(
        "escapes in a name", header | {"\x1b[31m\nred\0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    )
    for what, number in (("NaN", float("nan")), ("infinity", float("inf"))):
        yield made(what, header, data[: offsets[0]] + struct.pack("<f", number) + data[offsets[0] + 4 :])
