"""What the command line says to the libraries beneath PyTorch, in processes of their own."""

import os
import subprocess
import sys

import pytest

PROGRAM = "import os, highrank.cli.environment; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
    ],
)
def test_how_threads_wait(given: dict[str, str], found: str) -> None:
    environment = {name: os.environ[name] for name in os.environ.keys() - {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}} | given
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
