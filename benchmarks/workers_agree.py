"""Do one, two and three workers end with the same weights? Real processes over a real process group.

``python -m benchmarks.workers_agree --data DIR`` trains the recipe of WikiText-2, whose updates have three
micro-batches, for some 30 updates that end in averaged SGD, and writes results/workers_agree.json.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import highrank.cli.environment  # noqa: F401 - as the command line has it
from benchmarks.harness import save
from highrank.cli.main import main as highrank_main
from highrank.runs import RunFolder, load_checkpoint
from highrank.runs.checkpoint import Checkpoint

__all__ = ["LENGTH", "agreement", "train_with"]

RECIPE = "wikitext-2"
LENGTH = ("data.train_tokens=11000", "data.heldout_tokens=4000", "train.epochs=3", "train.average_from=3")


def train_with(workers: int, out: Path, arguments: Sequence[str], *, dtype: str = "float32") -> None:
    """``highrank train`` with so many workers, its numbers of type ``dtype``."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    inside = ["-m", "benchmarks.workers_agree", "--inside", dtype, "train", *arguments, "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", *launcher, *inside], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{workers} workers ended with {done.returncode}: {done.stderr}")


def agreement(one: Path, other: Path) -> dict[str, Any]:
    """The largest difference of any weight or average, relative to the largest number of its tensor, and of losses."""
    ours, theirs = (_last(run) for run in (one, other))
    differences = [
        _relative_difference(tensors[name], tensor)
        for tensors, tensors_of_other in ((ours.model, theirs.model), (ours.tensors, theirs.tensors))
        for name, tensor in tensors_of_other.items()
        if not name.startswith("carried")
    ]
    losses, losses_of_other = (_validation_losses(run) for run in (one, other))
    return {
        "updates": ours.state["position"]["step"],
        "averaging": ours.state["position"]["averaging"],
        "tensors": len(differences),
        "largest_relative_difference": max(differences),
        "largest_difference_of_validation_nats": max(abs(a - b) for a, b in zip(losses, losses_of_other, strict=True)),
    }


def _last(run: Path) -> Checkpoint:
    return load_checkpoint(max((run / "train").glob("checkpoint-*")))


def _relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    largest = max(one.abs().max().item(), torch.finfo(torch.float64).tiny)
    return (one.double() - other.double()).abs().max().item() / largest


def _validation_losses(run: Path) -> list[float]:
    return [record["loss_nats"] for record in RunFolder.open(run).metrics() if record["event"] == "validation"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the folder of WikiText-2")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="other settings of the recipe")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    settings = itertools.chain.from_iterable(("--set", setting) for setting in (*LENGTH, *arguments.overrides))
    command = [RECIPE, "--data", arguments.data, "--device", "cpu", *settings]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float64", "float32"):
            runs = {workers: Path(folder) / f"{dtype}-{workers}" for workers in arguments.workers}
            for workers, out in runs.items():
                train_with(workers, out, command, dtype=dtype)
            first = arguments.workers[0]
            results[dtype] = {
                f"{workers} workers against {first}": agreement(runs[first], runs[workers])
                for workers in arguments.workers[1:]
            }
            print(dtype, results[dtype], flush=True)
    print(save("workers_agree", {"recipe": RECIPE, "settings": [*LENGTH, *arguments.overrides], **results}))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:  # one of the workers
        torch.set_default_dtype(getattr(torch, sys.argv[2]))
        sys.exit(highrank_main(sys.argv[3:]))
    sys.exit(main())
