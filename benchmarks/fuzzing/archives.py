"""Archives with members that are links, lie outside, or unpack to gigabytes; members and headers that lie."""

import bz2
import functools
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.fuzzing.damage import Damage, written

__all__ = ["BOMB_BYTES", "tars", "zips"]

MIB = 1 << 20
BOMB_BYTES = 320 * MIB  # far above every bound, and quick to make


@functools.cache
def gzip_bomb() -> bytes:
    """Compressed zeros, much more than any bound: 320 MiB in 1.4."""
    zeros, packer = bytes(8 * MIB), zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(packer.compress(zeros) for _ in range(BOMB_BYTES // len(zeros))) + packer.flush()


def zips(good: bytes) -> Iterator[Damage]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}

    def made(
        what: str, content: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, change: Callable[[Any], None] = id
    ) -> Damage:
        def packed() -> bytes:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", method) as archive:
                for name, data in content.items():
                    info = zipfile.ZipInfo(name)
                    info.compress_type = method
                    change(info)
                    archive.writestr(info, data)
            return stream.getvalue()

        return written(what, packed)

    def linked(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    first = next(iter(members))
    largest = max(members, key=lambda name: len(members[name]))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield made(f"packed by method {method}", members, method)
    for name in (
        "../outside.txt",
        "/tmp/highrank-outside.txt",
        "C:\\outside.txt",
        "..\\outside.txt",
        "a/../../b",
        "\x1b\n",
    ):
        yield made(f"a member {name!r}", {name: b"no", **members})
        yield made(f"all renamed to {name!r}", {f"{name}{n}": data for n, data in enumerate(members.values())})
    yield made("links", dict.fromkeys(members, b"/etc/hostname"), change=linked)
    yield made("folders", {f"{name}/": b"" for name in members})
    yield made("nothing", {})
    yield made("members without content", dict.fromkeys(members, b""))
    yield made("many members", {f"{n}": b"" for n in range(20_000)} | members)
    yield made("an archive in an archive", dict.fromkeys(members, good))
    for name in sorted({first, largest}):
        yield written(f"a bomb as {name[:30]}", lambda name=name: _zip_bomb(members, name))
        yield written(f"a bomb that lies as {name[:30]}", lambda name=name: _small_claims(_zip_bomb(members, name)))
    yield written("a bomb beside the rest", lambda: _zip_bomb({**members, "padding": b""}, "padding"))
    yield written("overlapping members", lambda: _overlapping(good))
    yield written("a second directory", lambda: good + _zip_bomb(members, largest))
    yield written("a second directory before", lambda: _two_directories(good, _zip_bomb(members, largest)))
    for field, at in (
        ("flags", 8),
        ("method", 10),
        ("packed size", 20),
        ("size", 24),
        ("offset", 42),
        ("name length", 28),
    ):
        for value in (b"\xff\xff", b"\x01\x00", b"\x00\x80"):
            changed = bytearray(good)
            place = changed.rfind(b"PK\x01\x02") + at
            changed[place : place + 2] = value
            yield written(f"directory: {field} {value.hex()}", bytes(changed))


def _zip_bomb(members: Mapping[str, bytes], name: str) -> bytes:
    """The archive with 320 MiB of zeros as the member ``name``. The packed bytes are put in as they are."""
    packed = gzip_bomb()
    deflated, checksum = packed[10:-8], struct.unpack("<I", packed[-8:-4])[0]
    stream, directory = io.BytesIO(), b""
    for each, data in members.items():
        encoded, offset = each.encode(), stream.tell()
        method, size, crc, content = 0, len(data), zipfile.crc32(data), data
        if each == name:
            method, size, crc, content = 8, BOMB_BYTES, checksum, deflated
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(content), size, len(encoded), 0)
        stream.write(b"PK\x03\x04" + fields + encoded + content)
        directory += b"PK\x01\x02\x14\x00" + fields + struct.pack("<HHHII", 0, 0, 0, 0, offset) + encoded
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), stream.tell(), 0)
    return stream.getvalue() + directory + b"PK\x05\x06" + end


def _small_claims(bomb: bytes) -> bytes:
    """The directory claims small sizes; what is packed is as large as before."""
    lying = bytearray(bomb)
    at = lying.find(b"PK\x01\x02")
    while at >= 0:
        if struct.unpack_from("<I", lying, at + 24)[0] >= BOMB_BYTES:
            struct.pack_into("<I", lying, at + 24, 100)
        at = lying.find(b"PK\x01\x02", at + 4)
    return bytes(lying)


def _two_directories(good: bytes, bomb: bytes) -> bytes:
    """One archive for readers that take the directory's place from the end of the file, another for those that count.

    The end names the directory of ``bomb`` by its offset; just before the end stands that of ``good``."""
    bomb_end, good_end = bomb.rfind(b"PK\x05\x06"), good.rfind(b"PK\x05\x06")
    count, size, _ = struct.unpack_from("<HII", good, good_end + 10)
    directory = good[good_end - size : good_end]
    offset = struct.unpack_from("<I", bomb, bomb_end + 16)[0]
    end = struct.pack("<HHHHIIH", 0, 0, count, count, size, offset, 0)
    return bomb[:bomb_end] + directory + b"PK\x05\x06" + end


def _overlapping(good: bytes) -> bytes:
    """Every entry of the directory a thousand times: members that share their bytes."""
    end = good.rfind(b"PK\x05\x06")
    count, size, offset = struct.unpack_from("<HII", good, end + 10)
    start = end - size
    copies = 60_000 // max(1, count)
    directory = good[start:end] * copies
    tail = struct.pack("<HHHHIIH", 0, 0, count * copies, count * copies, len(directory), offset, 0)
    return good[:start] + directory + b"PK\x05\x06" + tail


def tars(good: bytes, kind: str) -> Iterator[Damage]:
    with tarfile.open(fileobj=io.BytesIO(good)) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]

    def raw(content: list[tuple[dict[str, Any], bytes]], **options: Any) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:", **options) as archive:
            for fields, data in content:
                info = tarfile.TarInfo()
                info.size = len(data)
                for name, value in fields.items():
                    setattr(info, name, value)
                archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
        return stream.getvalue()

    def made(what: str, tar: bytes) -> Damage:
        return written(what, gzip.compress(tar, 1) if kind == "tgz" else tar)

    plain = [({"name": name}, data) for name, data in members.items()]
    for name in ("../outside.txt", "/tmp/highrank-outside.txt", "a/../../b", "\x1b[31m\n", "x" * 4000):
        yield made(f"a member {name[:30]!r}", raw([({"name": name}, b"no"), *plain]))
        yield made(f"all renamed to {name[:30]!r}", raw([({"name": f"{name}{n}"}, b"no") for n, _ in enumerate(plain)]))
    for what, fields in {
        "symbolic links": {"type": tarfile.SYMTYPE, "linkname": "/etc/hostname"},
        "hard links": {"type": tarfile.LNKTYPE, "linkname": "/etc/hostname"},
        "hard links to themselves": {"type": tarfile.LNKTYPE, "linkname": next(iter(members))},
        "devices": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        "FIFOs": {"type": tarfile.FIFOTYPE},
        "folders": {"type": tarfile.DIRTYPE},
        "an unknown type": {"type": b"~"},
    }.items():
        yield made(what, raw([({"name": name, **fields}, b"") for name in members]))
    yield made("nothing", raw([]))
    yield made("members twice", raw(plain + plain))
    for size in (-1, -512, -10_000, 1 << 33, 1 << 62):
        damaged = bytearray(raw(plain))
        damaged[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        yield made(f"size {size}", bytes(_summed(damaged)))
    for letter in (b"x", b"g", b"L", b"K", b"S", b"V"):
        head = bytearray(raw([({"name": "claim"}, b"")])[:512])
        head[156:157] = letter
        head[124:136] = tarfile.itn(BOMB_BYTES, 12, tarfile.GNU_FORMAT)
        yield made(f"a header {letter!r} that claims much", bytes(_summed(head)) + raw(plain))
        if kind == "tgz":
            yield written(f"a header {letter!r} that is a bomb", _before_a_bomb(_summed(head)))
    for records in (b"30 path=" + b"../" * 7 + b"\n", b"99999999999 a=b\n", b"0 \n", b"-1 a=b\n", b"15 size=999999\n"):
        head = bytearray(raw([({"name": "claim"}, records)]))
        head[156:157] = b"x"
        yield made(f"extended header {records[:16]!r}", bytes(_summed(head))[:1024] + raw(plain))
    sparse = bytearray(raw([({"name": next(iter(members))}, b"")])[:512])
    sparse[156:157] = b"S"
    sparse[386:410] = tarfile.itn(0, 12, tarfile.GNU_FORMAT) + tarfile.itn(0, 12, tarfile.GNU_FORMAT)
    sparse[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)
    yield made("a sparse member of 2^40 bytes", bytes(_summed(sparse)) + raw(plain))
    if kind == "tgz":
        head = bytearray(raw([({"name": next(iter(members))}, b"")])[:512])
        head[124:136] = tarfile.itn(BOMB_BYTES, 12, tarfile.GNU_FORMAT)
        yield written("a bomb as a member", _before_a_bomb(_summed(head)))
        yield written("a bomb alone", gzip_bomb)
        yield written("packed twice", gzip.compress(good))
    yield written("bz2", bz2.compress(raw(plain)))
    yield written("xz", lzma.compress(raw(plain)))


def _before_a_bomb(header: bytes) -> Callable[[], bytes]:
    """A header, then zeros. The members of a gzip file follow one another."""
    return lambda: gzip.compress(header) + gzip_bomb()


def _summed(header: bytearray) -> bytearray:
    """With the checksum of the first header made right."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return header
