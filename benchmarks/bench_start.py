"""How long does `highrank train` take from the command to the end of its first update, on text it has read before?"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import save, summary

# The command line's own function, in a process of its own that ends after one update.
PROGRAM = """
import os, sys
import highrank.cli.main
import highrank.train
loop = sys.modules["highrank.train.loop"]
update = loop.update
def first_update(*arguments, **options):
    update(*arguments, **options)
    print("updated", flush=True)
    os._exit(0)
loop.update = first_update
highrank.cli.main.main(["train", *sys.argv[1:]])
"""
IMPORT = "import torch, os; print('imported', flush=True); os._exit(0)"


def seconds_until_output(command: list[str]) -> float:
    """From starting the process to its first line of output."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        elapsed = time.perf_counter() - began
        assert line, process.stderr.read()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="penn-small")
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"import torch": [], "first update": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train = [sys.executable, "-c", PROGRAM, arguments.recipe, "--data", arguments.data, "--out", str(out)]
        for round_number in range(arguments.repeats + 1):  # the first one fills the caches of text and files
            shutil.rmtree(out, ignore_errors=True)
            seconds = (seconds_until_output([sys.executable, "-c", IMPORT]), seconds_until_output(train))
            if round_number:
                for name, value in zip(times, seconds, strict=True):
                    times[name].append(value)
    rows = {name: summary(seconds) for name, seconds in times.items()}
    for name, row in rows.items():
        print(f"{name}: {row['median_s']:.2f} s")
    print(save(Path(__file__).stem, {"recipe": arguments.recipe, "repeats": arguments.repeats, "times": rows}))


if __name__ == "__main__":
    main()
