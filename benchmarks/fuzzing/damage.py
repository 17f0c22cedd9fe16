"""What is done to a good file before it is read: damage by chance, of its bytes or of one value in it.

Every ``Damage`` is a phrase and a function that is given the path of the good file and leaves something else there.
"""

import contextlib
import json
import struct
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import tomli_w

__all__ = ["DEEP", "DTYPES", "Damage", "chance", "nasty_tree", "written"]

DEEP = 100_000
# dtypes of the safetensors format, those among them that PyTorch or an older release does not know, and none.
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL", "C64", "F8_E4M3", "F4", "F8_E8M0", "X9", "")
NASTY_NUMBERS = (-1, 0, 1, 2**31, 2**50, 2**63, 2**64, 10**400, 1e308, -0.5, float("nan"), float("inf"), True)
NASTY_TEXTS = (
    "",
    "x" * 200_000,
    "\x1b[2J\x1b[31mred",
    "two\nlines",
    "nul\0",
    "\u202egnirts",
    "../../../../etc/passwd",
    "/dev/zero",
    "\ud800",
)
NASTY = (*NASTY_NUMBERS, *NASTY_TEXTS, None, [], {}, [[]], {"": {}}, [0] * 1000, {"a.b": [None]})


class Damage(NamedTuple):
    what: str
    apply: Callable[[Path], None]


def written(what: str, content: bytes | Callable[[], bytes]) -> Damage:
    """Other content. A function makes it when it is needed: most lists of damages are used in part."""

    def apply(path: Path) -> None:
        path.write_bytes(content() if callable(content) else content)

    return Damage(what, apply)


def chance(good: bytes, others: list[bytes], random: Random) -> Damage:
    """One to three mishaps, one after the other."""
    names, content = [], good
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        mishap = random.choice(MISHAPS)
        names.append(mishap.__name__.strip("_"))
        content = mishap(content, others, random)
    return written(f"{' + '.join(names)}", content)


def _flip(content: bytes, others: list[bytes], random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8)) if content else 0):
        changed[_place(content, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, others: list[bytes], random: Random) -> bytes:
    return content[: _place(content, random)]


def _extend(content: bytes, others: list[bytes], random: Random) -> bytes:
    return content + random.choice((b"\0", b"\n", b"}", random.randbytes(100), content))


def _splice(content: bytes, others: list[bytes], random: Random) -> bytes:
    """Bytes from here or from another file, over what was there or in between."""
    source = random.choice([content, *others]) or b"\0"
    start, length = random.randrange(len(source)), random.choice((1, 4, 16, 200))
    piece, to = source[start : start + length], _place(content, random)
    return content[:to] + piece + content[to + random.choice((0, len(piece))) :]


def _remove(content: bytes, others: list[bytes], random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + content[at + random.choice((1, 4, 16, 200)) :]


def _blank(content: bytes, others: list[bytes], random: Random) -> bytes:
    """A run of zeros: what a file system leaves of a block that it lost."""
    at, length = _place(content, random), random.choice((4, 64, 512))
    return content[:at] + bytes(min(length, len(content) - at)) + content[at + length :]


def _number(content: bytes, others: list[bytes], random: Random) -> bytes:
    """A length or an offset becomes one that is too large."""
    number = random.choice((b"\xff" * 4, b"\xff" * 8, b"\0\0\0\x80", struct.pack("<q", 1 << 60), b"\x7f\xff\xff\xff"))
    at = _place(content, random)
    return content[:at] + number + content[at + len(number) :]


def _swap(content: bytes, others: list[bytes], random: Random) -> bytes:
    return random.choice(others) if others else content[::-1]


MISHAPS = (_flip, _flip, _flip, _truncate, _extend, _splice, _remove, _blank, _number, _swap)


def _place(content: bytes, random: Random) -> int:
    """Somewhere; as often as not where headers and directories are."""
    size = len(content)
    if not size:
        return 0
    return random.choice(
        (random.randrange(size), random.randrange(min(size, 64)), size - 1 - random.randrange(min(size, 128)))
    )


def nasty_tree(kind: str, good: bytes, random: Random) -> Damage | None:
    """A JSON or TOML file, or a safetensors header, that is well formed and wrong in one place."""
    if kind == "safetensors":
        end = 8 + int.from_bytes(good[:8], "little")
        what, tree = _nasty(json.loads(good[8:end]), random, DTYPES if random.random() < 0.3 else NASTY)
        header = json.dumps(tree).encode()
        return written(f"header: {what}", len(header).to_bytes(8, "little") + header + good[end:])
    if kind == "json":
        what, tree = _nasty(json.loads(good), random, NASTY)
        return written(what, json.dumps(tree, indent=random.choice((None, 1))).encode())
    if kind == "lines":
        lines = good.splitlines()
        at = random.randrange(len(lines))
        what, tree = _nasty(json.loads(lines[at]), random, NASTY)
        return written(what, b"\n".join([*lines[:at], json.dumps(tree).encode(), *lines[at + 1 :]]) + b"\n")
    if kind == "toml":
        what, tree = _nasty(tomllib.loads(good.decode()), random, NASTY)
        with contextlib.suppress(TypeError, UnicodeEncodeError):  # None and lone surrogates are not TOML
            return written(what, tomli_w.dumps(tree).encode())
    return None


def _nasty(tree: Any, random: Random, values: tuple[Any, ...]) -> tuple[str, Any]:
    places = list(_places(tree, ()))
    *way, last = random.choice(places)
    parent = tree
    for key in way:
        parent = parent[key]
    what = random.choice(("replace", "replace", "replace", "delete", "rename"))
    if what == "replace":
        value = random.choice(values)
        parent[last] = value
        what = f"replace by {value!r:.40}"
    elif what == "delete":
        del parent[last]
    elif isinstance(parent, dict):
        parent[random.choice([text for text in NASTY_TEXTS if isinstance(text, str)])] = parent.pop(last)
    return f"{'.'.join(map(str, (*way, last)))[:80]}: {what}", tree


def _places(tree: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*way, key)
        yield from _places(value, (*way, key))
