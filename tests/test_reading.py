"""Files that anyone may have written: plain ones, to a limit; and messages that a terminal may be given."""

import os
from pathlib import Path

import pytest

from highrank.errors import UserError
from highrank.reading import JSON_LIMIT_BYTES, read_bytes, read_json


def test_a_file_is_read_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UserError, match=r"file: 5 bytes, more than the limit of 4 for such a file"):
        read_bytes(path, 4)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("absent", "no such file"),
        ("pipe", "expected a plain file, got a device or a pipe"),
        (".", "expected a plain file, got a folder"),
        ("loop", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read_bytes(tmp_path / name, 10)
    with pytest.raises(UserError, match="got a device"):
        read_bytes(Path("/dev/zero"), 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "expected a JSON object, got list"),
        (b"{", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8 text \\(at byte 7\\)"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (JSON_LIMIT_BYTES + 1), "more than the limit"),
    ],
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert str(caught.value).isprintable()


def test_a_message_is_one_short_line_whatever_it_quotes() -> None:
    assert str(UserError("naïve «text»")) == "naïve «text»"
    assert str(UserError("two\nlines \x1b[31m \ud800")) == r"two\nlines \x1b[31m \ud800"
    long = str(UserError("file.toml: got " + "\x1b" * 5000 + "; give another"))
    assert long.startswith("file.toml: got ")
    assert long.endswith("; give another")
    assert len(long) <= 1200
    assert str(UserError("no", advice="\ndo this")) == "no\ndo this"
