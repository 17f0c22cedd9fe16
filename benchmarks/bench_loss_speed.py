"""How long do the loss and its gradients take, beside the textbook's, other libraries', and the bare products?"""

import argparse
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import in_turn, save, summary
from benchmarks.losses import (
    Case,
    Loss,
    Size,
    add_sizes,
    candidates,
    default_of_ours,
    make_case,
    ours_failed,
    products,
    sizes,
)


def forward_and_backward(loss: Loss, case: Case) -> None:
    for leaf in case.leaves:
        leaf.grad = None
    loss(case).backward()


def large_product(device: str, dtype: torch.dtype, rows: int = 3072) -> Callable[[], object]:
    """What this machine calls full speed: a square product that is too large for launches or edges to matter."""
    a, b = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def measure(size: Size, dtype: torch.dtype, device: str, repeats: int, *, compiled: bool) -> dict[str, Any]:
    case = make_case(size, dtype, device)
    square = 3072 if device == "cpu" else 8192
    calls: dict[str, Callable[[], object]] = {
        name: partial(forward_and_backward, loss, case)
        for name, loss in candidates(size, device, dtype, compiled=compiled).items()
    }
    calls["three products"] = products(case)
    calls["large product"] = large_product(device, dtype, square)
    failed: dict[str, str] = {}
    times = {name: summary(seconds) for name, seconds in in_turn(calls, repeats, failed=failed).items()}
    peak_rate = 2 * square**3 / times["large product"]["median_s"]
    ours = default_of_ours(times, device)
    rates = {name: size.operations / value["median_s"] for name, value in times.items() if name != "large product"}
    return {
        "size": vars(size),
        "dtype": str(dtype).removeprefix("torch."),
        "times": times,
        "failed": failed,
        "operations": size.operations,
        "operations_per_s": rates | {"large product": peak_rate},
        "share_of_large_product": rates[ours] / peak_rate if ours else None,
        "times_faster": {
            name: times[name]["median_s"] / times[ours]["median_s"]
            for name in rates
            if ours and name != ours and not name.endswith("autocast")
        },
    }


def show(name: str, result: dict[str, Any]) -> None:
    size = result["size"]
    print(
        f"\n{name}: N={size['tokens']:,} K={size['components']} D={size['features']} V={size['classes']:,}, "
        f"{result['dtype']}"
    )
    for candidate, value in result["times"].items():
        faster = result["times_faster"].get(candidate)
        ratio = "" if faster is None else f"{faster:7.2f} x ours"
        rate = result["operations_per_s"][candidate] / 1e9
        print(f"  {candidate:30} {1000 * value['median_s']:10.2f} ms {rate:9,.0f} GFLOP/s {ratio}")
    for candidate, why in result["failed"].items():
        print(f"  {candidate:30} {why}")
    if result["share_of_large_product"] is not None:
        print(f"  ours: {100 * result['share_of_large_product']:.0f}% of the large product's rate")


def under_autocast(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times faster ours is under autocast than the textbook, as it comes and under autocast: all on the same
    inputs in float32."""
    ours = times.get("highrank, bfloat16 autocast")
    others = ("textbook", "textbook, bfloat16 autocast")
    return {name: times[name]["median_s"] / ours["median_s"] for name in others if ours and name in times}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_sizes(parser)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the textbook too (needs a compiler)")
    arguments = parser.parse_args()
    if arguments.compile and not shutil.which("g++"):
        parser.error("--compile: no g++ found")

    chosen = sizes(parser, arguments.sizes, arguments.device)
    results: dict[str, Any] = {}
    across = {}
    for name, size in chosen.items():
        for dtype in (torch.float32, torch.bfloat16):
            key = f"{name}.{str(dtype).removeprefix('torch.')}"
            results[key] = measure(size, dtype, arguments.device, arguments.repeats, compiled=arguments.compile)
            show(name, results[key])
            if dtype == torch.float32 and (ratios := under_autocast(results[key]["times"])):
                across[name] = ratios
            path = save(  # after each: what comes may take it along
                f"{Path(__file__).stem}.{arguments.device}",
                {"repeats": arguments.repeats, "results": results, "autocast_times_faster": across},
            )
    for name, ratios in across.items():
        print(f"\n{name}, ours by autocast: {', '.join(f'{x:.2f} times faster than {of}' for of, x in ratios.items())}")
    print(f"\n-> {path}")
    return 1 if any(ours_failed(result["failed"]) for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
