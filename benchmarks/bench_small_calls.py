"""From what size on does the fused loss take less time than the textbook's formula?"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import in_turn, save, summary
from benchmarks.losses import REFERENCE, Case, Loss, Size, candidates, default_of_ours, make_case, ours, ours_failed

CLASSES = (100, 300, 1000, 3000, 10_000)


def calls(loss: Loss, case: Case, count: int) -> None:
    for _ in range(count):
        forward_and_backward(loss, case)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--calls", type=int, default=20, help="of a measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for tokens in arguments.tokens:
        for classes in arguments.classes:
            size = Size(tokens, arguments.components, arguments.features, classes)
            losses = candidates(size, arguments.device) | {REFERENCE: ours("reference")}
            case = make_case(size, device=arguments.device)
            failed: dict[str, str] = {}
            times = in_turn(
                {name: partial(calls, loss, case, arguments.calls) for name, loss in losses.items()},
                arguments.repeats,
                failed=failed,
            )
            call = {name: summary([each / arguments.calls for each in seconds]) for name, seconds in times.items()}
            row = {"size": vars(size), "call": call, "failed": failed}
            rows.append(row)
            shown_ms = {name: f"{1e3 * each['median_s']:.2f} ms" for name, each in call.items()}
            print(
                f"N={tokens:<6} K={size.components:<3} D={size.features:<4} V={classes:<7,}",
                *(f"{name} {what}" for name, what in (shown_ms | failed).items()),
                sep="  ",
            )
            default = default_of_ours(call, arguments.device)
            if default is not None and "textbook" in call:
                row["times_faster"] = call["textbook"]["median_s"] / call[default]["median_s"]
            # After each: what comes may take it along.
            result = {"calls_a_repeat": arguments.calls, "repeats": arguments.repeats, "sizes": rows}
            path = save(f"{Path(__file__).stem}.{arguments.device}", result)
    print(f"-> {path}")
    return 1 if any(ours_failed(row["failed"]) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
