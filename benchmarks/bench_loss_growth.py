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
from benchmarks.losses import Loss, Size, candidates, make_case

GROWTH = {
    "tokens": (256, 512, 1024, 2048),
    "components": (2, 4, 8, 16),
    "features": (64, 128, 256, 512),
    "classes": (5_000, 10_000, 20_000, 40_000),
}


def exponent(x: tuple[int, ...], y: list[float]) -> float:
    """The slope of log y over log x: 1 is linear, 0 flat."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def grow(name: str, loss: Loss, base: Size, axis: str, device: str, repeats: int) -> dict[str, Any]:
    cases = {str(value): make_case(replace(base, **{axis: value}), device=device) for value in GROWTH[axis]}
    calls = {value: partial(forward_and_backward, loss, case) for value, case in cases.items()}
    seconds = [summary(times)["median_s"] for times in in_turn(calls, repeats).values()]
    working = [working_bytes(loss, case) for case in cases.values()]
    found = {
        "values": list(GROWTH[axis]),
        "seconds": seconds,
        "working_bytes": working,
        "exponent_of_time": exponent(GROWTH[axis], seconds),
        "exponent_of_working_bytes": exponent(GROWTH[axis], [float(x) for x in working]),
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
    arguments = parser.parse_args()
    base = Size(tokens=512, components=4, features=128, classes=10_000)
    found = candidates(base, arguments.device)
    results = {
        name: {axis: grow(name, loss, base, axis, arguments.device, arguments.repeats) for axis in GROWTH}
        for name, loss in found.items()
        if name.startswith("highrank") or name == "textbook"
    }
    path = save(f"{Path(__file__).stem}.{arguments.device}", {"base": vars(base), "results": results})
    print(f"-> {path}")


if __name__ == "__main__":
    main()
