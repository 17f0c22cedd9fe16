"""A command on a real pseudo-terminal, and what a screen of that width would show in the end."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Shown", "on_a_terminal", "screen"]

CONTROL = re.compile(r"\x1b\[(\??)(\d*(?:;\d+)*)([A-Za-z])")


@dataclass(frozen=True)
class Shown:
    """``stream``: all that the terminal was sent; ``piped``: standard output, where that was no terminal."""

    returncode: int
    stream: str
    piped: str


def on_a_terminal(
    arguments: Sequence[str | Path], *, columns: int, pipe_output: bool = False, **environment: str
) -> Shown:
    """Run ``python ARGUMENTS`` with a terminal of so many columns as standard error, and as output if not piped."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=slave,
        stdout=subprocess.PIPE if pipe_output else slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
    )
    os.close(slave)
    stream = b""
    while True:
        try:
            content = os.read(master, 1 << 16)
        except OSError:  # Linux says so that nobody has the other end any more
            break
        if not content:
            break
        stream += content
    os.close(master)
    piped = process.communicate()[0] or b""
    return Shown(process.returncode, stream.decode(), piped.decode())


def screen(stream: str, columns: int) -> list[str]:
    """The lines of an endless screen of so many columns after ``stream``; of escapes it knows those that we use."""
    lines: list[list[str]] = [[]]
    row = column = place = 0
    while place < len(stream):
        if stream[place] == "\x1b":
            control = CONTROL.match(stream, place)
            assert control, repr(stream[place : place + 20])
            place, (private, number, kind) = control.end(), control.groups()
            if kind == "A":
                row -= int(number or 1)
                assert row >= 0
            elif kind == "K":
                assert number == "2"
                lines[row] = []
            else:
                assert kind == "m" or private, control.group()  # colours; the cursor shown and hidden
            continue
        character, place = stream[place], place + 1
        if character == "\r":
            column = 0
            continue
        if character == "\n" or column == columns:
            row += 1
            column = 0 if character != "\n" else column
            if row == len(lines):
                lines.append([])
        if character != "\n":
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]
