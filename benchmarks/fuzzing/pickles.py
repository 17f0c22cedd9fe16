"""Pickles that run code where they are believed: bare, in PyTorch's files of all times, in NumPy's arrays.

Each payload tries to create the file ``marker``, which nothing else does.
"""

import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fuzzing.damage import Damage, written

__all__ = ["Call", "arrays", "payloads", "pickled"]


class Call:
    """Whoever unpickles this calls ``function``: the whole of the danger."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that create ``marker`` where they are believed."""
    text = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": pickle.dumps(Call(os.system, f"touch '{marker}'")),
        "builtins.eval": pickle.dumps(Call(eval, text)),
        "builtins.exec in a state_dict": pickle.dumps({"encoder.weight": Call(exec, text)}),
        "os.mkdir, protocol 0": pickle.dumps([Call(os.mkdir, str(marker))], protocol=0),
        "by a global's name": b"cposix\nmkdir\n(V" + str(marker).encode() + b"\ntR.",
        "numpy's runstring": b"cnumpy.testing._private.utils\nrunstring\n(V" + text.encode() + b"\n}tR.",
    }


def pickled(marker: Path, *, zipped: bool) -> Iterator[Damage]:
    def saved(what: str, content: object) -> Damage:
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=zipped)
        return written(what, stream.getvalue())

    text = f"open({str(marker)!r}, 'w').close()"
    one = torch.ones(1)
    calls = {
        "os.system": Call(os.system, f"touch '{marker}'"),
        "eval": Call(eval, text),
        "mkdir": Call(os.mkdir, marker),
    }
    for name, call in calls.items():
        yield saved(f"state_dict with {name}", {"encoder.weight": one, "decoder.weight": call})
        yield saved(f"{name} alone", call)
        yield saved(f"{name} as a key", {"encoder.weight": one, "nested": {"deep": [call]}})
    yield saved("a gigabyte by bytearray", {"encoder.weight": Call(bytearray, 1 << 42)})
    yield saved("an expanded tensor", {"encoder.weight": one.expand(1 << 40)})
    yield saved("an expanded tensor in its place", {"encoder.weight": one.expand(1 << 20, 1 << 14)})
    yield saved("many views of one tensor", {f"rnns.{n}.module.weight_ih_l0": torch.ones(9999) for n in (0,)})
    yield saved("a sparse tensor", {"encoder.weight": torch.ones(2, 2).to_sparse()})
    yield saved("a meta tensor", {"encoder.weight": torch.empty(1 << 40, device="meta")})
    yield saved("a complex tensor", {"encoder.weight": torch.ones(2, 2, dtype=torch.complex64)})
    yield saved("a list", [one])
    yield saved("a number as a key", {1: one})
    yield saved("a tuple of tuples as a key", {_laughs(16): one})
    yield saved("escapes in a key", {"\x1b[31m\nred\0": one})
    yield saved("a long key", {"x" * 300_000: one})
    yield saved("many keys", {f"\n{number}": one for number in range(3000)})
    yield saved("a nested list", {"encoder.weight": _deep(3000)})
    if not zipped:
        yield from _legacy_tars(marker)


def _laughs(depth: int) -> object:
    value: object = "ha"
    for _ in range(depth):
        value = (value, value)
    return value


def _deep(depth: int) -> list[Any]:
    value: list[Any] = []
    limit = sys.getrecursionlimit()
    for _ in range(min(depth, limit // 4)):
        value = [value]
    return value


def _legacy_tars(marker: Path) -> Iterator[Damage]:
    """The format of PyTorch before 0.1.10: a tar archive of pickles."""
    for name, payload in payloads(marker).items():
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:") as archive:
            for member in ("sys_info", "pickle", "storages", "tensors", "../../outside"):
                info = tarfile.TarInfo(member)
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
        yield written(f"legacy tar with {name}", stream.getvalue())


def arrays(marker: Path, *, zipped: bool) -> Iterator[Damage]:
    def made(what: str, npy: bytes) -> Damage:
        if not zipped:
            return written(what, npy)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("encoder.weight.npy", npy)
        return written(what, stream.getvalue())

    def headed(text: str, data: bytes = bytes(64), version: bytes = b"\x01\x00") -> bytes:
        return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode("latin1") + data

    for call in (Call(os.system, f"touch '{marker}'"), Call(eval, f"open({str(marker)!r}, 'w').close()")):
        stream = io.BytesIO()
        np.save(stream, np.array([call], dtype=object), allow_pickle=True)
        yield made(f"an array of objects that call {call.function.__name__}", stream.getvalue())
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
    for shape in (
        "4",
        "1 << 20",
        str(1 << 34),
        str(1 << 50),
        "1, " * 80,
        "-4",
        f"{1 << 32}, {1 << 32}, 4",
        "0",
        "True",
    ):
        yield made(f"shape ({shape[:20]})", headed(head % shape))
    for what, text in {
        "nested header": "(" * 5000,
        "long nested header": "[" * 60_000,
        "calling header": f"__import__('os').mkdir({str(marker)!r})",
        "header of a list": "[1, 2]",
        "open quotes": "{'descr': '<f4",
        "python 2 longs": "{'descr': '<f4', 'fortran_order': False, 'shape': (4L,), }",
        "an indented header": "  {\n 'descr'",
        "an odd dtype": "{'descr': [('a', '<f4', (99999999,))], 'fortran_order': False, 'shape': (1,), }",
        "a dtype of nothing": "{'descr': '|V0', 'fortran_order': False, 'shape': (1125899906842624,), }",
        "a dtype of gigabytes": "{'descr': '|S2147483647', 'fortran_order': False, 'shape': (9,), }",
        "dates": "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4,), }",
        "big-endian": "{'descr': '>f4', 'fortran_order': False, 'shape': (4,), }",
        "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
    }.items():
        yield made(what, headed(text))
    for version in (b"\x02\x00", b"\x03\x00", b"\x09\x00"):
        yield made(f"version {version[0]}", headed(head % "4", version=version))
