"""From what size on does the fused loss take less time than the textbook's formula?"""

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import in_turn, save, summary
from benchmarks.losses import REFERENCE, Case, Loss, Size, candidates, default_of_ours, make_case, ours

CLASSES = (100, 300, 1000, 3000, 10_000)


def calls(loss: Loss, case: Case, count: int) -> None:
    for _ in range(count):
        forward_and_backward(loss, case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--calls", type=int, default=20, help="of a measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    for tokens in arguments.tokens:
        for classes in arguments.classes:
            size = Size(tokens, arguments.components, arguments.features, classes)
            losses = candidates(size, arguments.device) | {REFERENCE: ours("reference")}
            case = make_case(size, device=arguments.device)
            times = in_turn(
                {name: partial(calls, loss, case, arguments.calls) for name, loss in losses.items()}, arguments.repeats
            )
            call = {name: summary([each / arguments.calls for each in seconds]) for name, seconds in times.items()}
            default = call[default_of_ours(call)]["median_s"]
            faster = call["textbook"]["median_s"] / default
            rows.append({"size": vars(size), "call": call, "times_faster": faster})
            print(
                f"N={tokens:<6} K={size.components:<3} D={size.features:<4} V={classes:<7,} "
                f"{1e3 * default:8.2f} ms, textbook {1e3 * call['textbook']['median_s']:8.2f} ms: {faster:.2f}, "
                f"reference {1e3 * call[REFERENCE]['median_s']:8.2f} ms"
            )
    result = {"calls_a_repeat": arguments.calls, "repeats": arguments.repeats, "sizes": rows}
    print(f"-> {save(f'{Path(__file__).stem}.{arguments.device}', result)}")


if __name__ == "__main__":
    main()
