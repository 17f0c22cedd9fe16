"""What the tests of a GPU share."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from highrank.ops import table
from tests.gpu.marks import compiled

ONE_LAYER = """
import torch
from highrank.models.persistent_lstm import persistent_lstm
width, leaves = 960, []
for size in [(70, 12, 280), (1, 12, width), (1, 12, width), (4 * width, 280), (4 * width, width), *[(4 * width,)] * 2]:
    leaves.append(torch.randn(size, device="cuda", dtype=torch.bfloat16).mul_(0.05).requires_grad_())
leaves[2] = leaves[2].detach().float().requires_grad_()
persistent_lstm(leaves[0], (leaves[1], leaves[2]), *leaves[3:])[0].sum().backward()
torch.cuda.synchronize()
"""


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels() -> Iterator[None]:
    assert os.environ["TRITON_INTERPRET"] == "0", "make test-gpu, or TRITON_INTERPRET=0: else no kernel is compiled"
    yield
    assert not table._GIVEN_UP, "the loss's kernels have failed: what was tested as auto was plain PyTorch"


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of real text, whose package a machine with a GPU may lack: each word has a few usual successors."""
    folder, draw = tmp_path_factory.mktemp("small-text"), random.Random(1)
    words = [f"w{number}" for number in range(300)]
    successors = {word: [words[min(int(draw.expovariate(0.03)), 299)] for _ in range(4)] for word in words}
    for split, lines in (("train", 120), ("valid", 40), ("test", 40)):
        said, text = words[0], []
        for _ in range(lines):
            sentence = [said := draw.choice(successors[said]) for _ in range(25)]
            text.append(" ".join(sentence) + " \n")
        (folder / f"{split}.txt").write_text("".join(text), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def programs_meet() -> None:
    """Programs that wait for one another for ever would hold this process too: first in one that can be ended."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", ONE_LAYER], check=True, timeout=180, env=environment)


@pytest.fixture(params=["torch", pytest.param("triton", marks=compiled)])
def recurrence(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        request.getfixturevalue("programs_meet")
    return str(request.param)
