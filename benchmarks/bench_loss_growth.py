"""How do time and memory grow with tokens, components, features and classes? Fits the exponents of a power law."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_loss_memory import working_bytes
from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import attempt, in_turn, save, summary
from benchmarks.losses import Loss, Size, candidates, make_case, ours_failed, size

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


def grow_along_all(name: str, loss: Loss, base: Size, device: str, repeats: int) -> dict[str, dict[str, Any]]:
    return {axis: grow(name, loss, base, axis, device, repeats) for axis in AXES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=size, metavar="N,K,D,V", help="that the others grow from (default: by device)")
    arguments = parser.parse_args()
    base = arguments.size or BASE[torch.device(arguments.device).type]
    found = candidates(base, arguments.device)
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in ("highrank chunked", "highrank triton", "textbook"):
        if name not in found:
            continue
        by_axis, why = attempt(partial(grow_along_all, name, found[name], base, arguments.device, arguments.repeats))
        if why is None:
            results[name] = by_axis
        else:
            failed[name] = why
            print(f"{name:20} {why}")
        # After each: what comes may take it along.
        result = {"base": vars(base), "results": results, "failed": failed}
        path = save(f"{Path(__file__).stem}.{arguments.device}", result)
    print(f"-> {path}")
    return 1 if ours_failed(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
