"""All singular values: those of the plain call, with the time told beforehand and on the way, and Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from highrank.evaluate import decomposition
from highrank.evaluate.decomposition import singular_values
from highrank.progress import CLOCK_EVERY_S
from tests.telling import Telling
from tests.terminal import on_a_terminal, screen

SIDES = (1200, 2000)  # some two seconds on one core
ONE_CORE = {"OMP_NUM_THREADS": "1"}  # or the work might be done before it can be watched


@pytest.fixture(scope="module")
def matrix() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.log_softmax(2 * torch.randn(*SIDES, dtype=torch.float64, generator=generator), -1)


@pytest.fixture(scope="module")
def saved(matrix: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "m.npy"
    np.save(path, matrix.numpy())
    return path


def test_the_values_are_those_of_the_plain_call_and_the_time_is_told(matrix: torch.Tensor) -> None:
    display = Telling()
    assert torch.equal(singular_values(matrix, display=display), singular_values(matrix))
    [message] = display.messages
    assert "1,200 x 2,000 on cpu: about " in message
    assert message.endswith("0.04 GiB beside the matrix")  # the copy and the triangle
    *waiting, (_, last, end, _) = display.shown
    assert waiting
    assert all(total is not None and done < total for _, done, total, _ in waiting), "the end before the end"
    assert last == end


def test_a_small_matrix_is_no_work_worth_telling() -> None:
    display = Telling()
    singular_values(torch.eye(300, dtype=torch.float64), display=display)
    assert display.messages == display.shown == []


def test_the_rate_is_measured_with_a_corner(monkeypatch: pytest.MonkeyPatch, matrix: torch.Tensor) -> None:
    """It grows until it takes long enough, to a quarter of each side; the time grows with the third power. Of two
    measurements the smaller counts."""
    sides: list[tuple[int, ...]] = []
    clock = 0.0

    def decomposed(corner: torch.Tensor) -> None:
        nonlocal clock
        clock += rate * len(corner) ** 3 + 9.0 * (not sides)  # the first call loads libraries
        sides.append(tuple(corner.shape))

    monkeypatch.setattr(decomposition, "_decomposed", decomposed)
    monkeypatch.setattr(decomposition.time, "perf_counter", lambda: clock)
    rate = 1e-6  # the second corner takes 0.055 s, the third 0.42
    assert decomposition._expected_seconds(matrix) == pytest.approx(rate * 1200**3, rel=0.03)
    assert sides == [(19, 32)] * 2 + [(38, 63)] * 2 + [(75, 125)] * 2
    sides, rate = [], 1e-9
    assert decomposition._expected_seconds(matrix) == pytest.approx(rate * 1200**3)
    assert sides[-1] == (300, 500)


def test_on_a_terminal(saved: Path) -> None:
    shown = on_a_terminal(["-m", "highrank", "rank", "--matrix", saved, "--device", "cpu"], columns=100, **ONE_CORE)
    assert shown.returncode == 0, shown.stream
    assert re.search(r"singular values .*\d+%, \d+ s left", re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.stream))
    left = " ".join(screen(shown.stream, 100))
    assert "singular values: a full decomposition of 1,200 x 2,000 on cpu: about" in left
    assert "s left" not in left
    # The path of the matrix decides where the line is wrapped, within a word too.
    assert "1,200of1,200singularvaluesaboveround-off" in left.replace(" ", "")


def test_piped(saved: Path) -> None:
    script = (
        "import sys, highrank.cli.display as d; d.PLAIN_LINE_EVERY_S = 0.1; from highrank.cli.main import main; "
        f"sys.exit(main(['rank', '--matrix', {str(saved)!r}, '--device', 'cpu', '--json']))"
    )
    command, alone = [sys.executable, "-c", script], {**os.environ, **ONE_CORE}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("{")
    lines = [line for line in done.stderr.splitlines() if line.startswith("singular values:")]
    assert "a full decomposition" in lines[0]
    assert re.fullmatch(r"singular values: \d+%, \d+ s left", lines[1])
    assert not any(line.startswith("singular values: 100%") for line in lines[1:-1])


def test_ctrl_c_ends_the_process_at_once_in_one_line(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    large = torch.log_softmax(torch.randn(2400, 2400, dtype=torch.float64, generator=generator), -1)  # some ten seconds
    np.save(tmp_path / "large.npy", large.numpy())
    command = [sys.executable, "-m", "highrank", "rank", "--matrix", str(tmp_path / "large.npy"), "--device", "cpu"]
    alone = {**os.environ, **ONE_CORE}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone)
    assert process.stderr is not None
    for line in process.stderr:
        if "a full decomposition" in line:
            break
    time.sleep(2 * CLOCK_EVERY_S)  # in the midst of it
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "highrank: stopped\n")
