"""The one display of progress: on terminals of several widths, piped, under --json, of workers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from highrank.cli import display
from highrank.cli.display import ConsoleDisplay, _Line
from tests.terminal import on_a_terminal, screen

RECIPE = Path(__file__).parent.parent / "train" / "tiny.toml"
# Work of every kind, in one process: it messages, knows its end or not, and prints a result within the display.
WORK = """
import sys, time
from highrank.cli.display import ConsoleDisplay
with ConsoleDisplay() as display:
    for done in range(1, 9):
        display.progress("train: epoch 3/200", done, 9, 5.123, unit="tokens")
        time.sleep(0.15)
    display.message("epoch 3: a message that is longer than a narrow terminal is wide")
    print("a result")
    display.progress("fetching penn.tgz", 1_000_000, None, unit="bytes")
    time.sleep(0.3)
    display.progress("train: epoch 3/200", 9, 9, 5.1)
    time.sleep(0.3)
    sys.stderr.write("a library's warning\\n")
"""
LINES = ["epoch 3: a message that is longer than a narrow terminal is wide", "a result", "a library's warning"]


@pytest.mark.parametrize(("columns", "environment"), [(40, {}), (120, {"NO_COLOR": "1"})])
def test_a_terminal_keeps_the_messages_and_nothing_of_the_progress(columns: int, environment: dict[str, str]) -> None:
    shown = on_a_terminal(["-c", WORK], columns=columns, **environment)
    assert shown.returncode == 0, shown.stream
    # The terminal wraps what is too long, once and where it is full.
    wrapped = [line[start : start + columns].rstrip() for line in LINES for start in range(0, len(line), columns)]
    assert [line for line in screen(shown.stream, columns) if line] == wrapped
    assert "train: epoch 3" in shown.stream
    assert "fetching penn.tgz  1.0 MB" in shown.stream
    colours = re.findall(r"\x1b\[[\d;]*3[0-9](?:;[\d;]+)?m", shown.stream)
    assert bool(colours) == (columns > 80 and "NO_COLOR" not in environment)
    for drawn in re.split(r"[\r\n]", re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.stream)):
        assert cell_len(drawn) <= columns - 1 or drawn in LINES, drawn


def test_a_dumb_terminal_gets_plain_lines() -> None:
    shown = on_a_terminal(["-c", WORK], columns=80, TERM="dumb")
    assert shown.stream.replace("\r", "") == "".join(f"{line}\n" for line in LINES)


def test_json_goes_out_and_progress_goes_to_the_terminal(small_text: Path, tmp_path: Path) -> None:
    command = ["-m", "highrank", "train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--json"]
    shown = on_a_terminal([*command, "--device", "cpu", "--set", "train.epochs=2"], columns=40, pipe_output=True)
    assert shown.returncode == 0, shown.stream
    assert json.loads(shown.piped)["stage"] == "train"
    assert "run folder" in shown.stream
    assert "%, perplexity" in shown.stream
    left = " ".join(screen(shown.stream, 40))
    assert "train: epoch 2, update" in left
    assert "%" not in left, left


@pytest.mark.parametrize("width", [1, 7, 12, 20, 39, 40, 60, 79, 80, 200])
@pytest.mark.parametrize("task", ["x", "gradient statistics", "search: lamb 0.02 " * 5, "日本語のコーパス" * 5])
@pytest.mark.parametrize("total", [None, 10**9])
def test_a_line_of_progress_is_one_line(width: int, task: str, total: int | None) -> None:
    line = _Line.of(task, 123_456_789, total, 5.4321, 98_765.4, "tokens")
    console = Console(width=width, height=5, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        console.print(line, end="")
    text = re.sub(r"\x1b\[[\d;]*m", "", captured.get())
    assert "\n" not in text
    assert cell_len(text) <= max(width - 1, 1)
    if width >= 39:
        assert ("12%" if total else "perplexity") in text
        assert task[:3] in text


def test_figures_are_there_in_the_order_of_their_weight() -> None:
    line = _Line.of("train: epoch 1/2", 500, 1000, 5.0, 100.0, "tokens")
    assert line.plain() == "train: epoch 1/2: 50%, perplexity 148.4, 5.000 nats, 5 s left, 100 tokens/s"
    assert _Line.of("fetching", 2_500_000, None, None, 0.0, "bytes").plain() == "fetching: 2.5 MB"
    assert _Line.of("empty", 0, 0, None, 0.0, "bytes").done


def test_piped_work_says_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 5))  # seconds: each look at it is five later
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    with ConsoleDisplay() as shown:
        for done in range(1, 13):
            shown.progress("encoding [kjv]", done * 10, 1000, unit="bytes")
        shown.message("a message")
    out, errors = capsys.readouterr()
    assert out == ""
    lines = errors.splitlines()
    assert 3 <= len(lines) <= 7
    assert all(re.fullmatch(r"encoding \[kjv\]: \d+%, .* left, 0.0 MB/s", line) for line in lines[:-1]), lines
    assert lines[-1] == "a message"


def test_only_the_first_worker_shows(small_text: Path, tmp_path: Path) -> None:
    command = ["train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--set", "train.epochs=1"]
    setup = "import highrank.cli.display as d; d.PLAIN_LINE_EVERY_S = -1.0\n"  # a plain line at every call
    script = tmp_path / "all_lines.py"
    script.write_text(
        f"{setup}import sys\nfrom highrank.cli.main import main\nsys.exit(main({[str(word) for word in command]!r}))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script]
    empty = {**os.environ, "HIGHRANK_CACHE": str(tmp_path / "cache")}  # so that both have text to encode
    done = subprocess.run(torchrun, env=empty, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: best") == 1
    shown = [line for line in done.stderr.splitlines() if "%" in line]
    assert len([line for line in shown if line.startswith("encoding") and "100%" in line]) == 1
    assert len([line for line in shown if line.startswith("train: validation") and "100%" in line]) == 1
