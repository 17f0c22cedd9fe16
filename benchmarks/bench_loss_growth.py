"""How do time and memory grow with tokens, components, features and classes? Fits the exponents of a power law."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_loss_memory import working_bytes
from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import in_turn, save, summary
from benchmarks.losses import Loss, Size, candidates, make_case, size

# Each size in turn is so many times that of the base. A block of the default size holds up to 629 tokens of these
# problems on a CPU and 3,355 on a GPU: fewer than there are, or the exponents of memory would be those of the first
# block as it fills up.
FACTORS = (0.5, 1, 2, 4)
AXES = ("tokens", "components", "features", "classes")
BASE = {"cpu": Size(1024, 4, 128, 10_000), "cuda": Size(8192, 4, 128, 10_000)}


def exponent(x: list[int], y: list[float]) -> float:
    """The slope of log y over log x: 1 is linear, 0 flat."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def grow(name: str, loss: Loss, base: Size, axis: str, device: str, repeats: int) -> dict[str, Any]:
    values = [int(factor * getattr(base, axis)) for factor in FACTORS]
    cases = {str(value): make_case(replace(base, **{axis: value}), device=device) for value in values}
    calls = {value: partial(forward_and_backward, loss, case) for value, case in cases.items()}
    seconds = [summary(times)["median_s"] for times in in_turn(calls, repeats).values()]
    working = [working_bytes(loss, case) for case in cases.values()]
    found = {
        "values": values,
        "seconds": seconds,
        "working_bytes": working,
        "exponent_of_time": exponent(values, seconds),
        "exponent_of_working_bytes": exponent(values, [float(x) for x in working]),
    }
    print(
        f"{name:20} {axis:12} time ~ {axis}^{found['exponent_of_time']:.2f}, "
        f"working memory ~ {axis}^{found['exponent_of_working_bytes']:.2f}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=size, metavar="N,K,D,V", help="that the others grow from (default: by device)")
    arguments = parser.parse_args()
    base = arguments.size or BASE[torch.device(arguments.device).type]
    found = candidates(base, arguments.device)
    results = {
        name: {axis: grow(name, loss, base, axis, arguments.device, arguments.repeats) for axis in AXES}
        for name, loss in found.items()
        if name.startswith("highrank") or name == "textbook"
    }
    path = save(f"{Path(__file__).stem}.{arguments.device}", {"base": vars(base), "results": results})
    print(f"-> {path}")


if __name__ == "__main__":
    main()
