"""What do smoothed labels cost, beside plain ones, the same from all log-probabilities, and the textbook's formula?"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench_loss_memory import working_bytes
from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import attempt, in_turn, save, summary
from benchmarks.losses import Case, Loss, Size, add_sizes, make_case, sizes
from benchmarks.textbook import mixture_log_prob as textbook_log_prob
from highrank import mixture_cross_entropy, mixture_log_prob

SMOOTHING = 0.1
OURS = {"plain labels", "label_smoothing", "mixture_log_prob"}


def ours(case: Case, label_smoothing: float) -> Tensor:
    context, prior_logits, weight, bias = case.leaves
    return mixture_cross_entropy(context, prior_logits, weight, case.target, bias=bias, label_smoothing=label_smoothing)


def spread(log_prob: Tensor, target: Tensor) -> Tensor:
    """As whoever has (tokens, V) log-probabilities smooths the labels."""
    return (1 - SMOOTHING) * F.nll_loss(log_prob, target) - SMOOTHING * log_prob.mean()


def from_log_prob(case: Case) -> Tensor:
    context, prior_logits, weight, bias = case.leaves
    return spread(mixture_log_prob(context, prior_logits, weight, bias=bias), case.target)


def textbook(case: Case) -> Tensor:
    return spread(textbook_log_prob(*case.leaves), case.target)


def cross_entropy(case: Case) -> Tensor:
    logits = F.linear(case.context.squeeze(1), case.weight, case.bias)
    return F.cross_entropy(logits, case.target, label_smoothing=SMOOTHING)


def losses(size: Size) -> dict[str, Loss]:
    found: dict[str, Loss] = {
        "plain labels": partial(ours, label_smoothing=0.0),
        "label_smoothing": partial(ours, label_smoothing=SMOOTHING),
        "mixture_log_prob": from_log_prob,
        "textbook": textbook,
    }
    if size.components == 1:
        found["cross_entropy(linear)"] = cross_entropy  # which F.linear_cross_entropy is too: it cuts plain labels only
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    add_sizes(parser)
    arguments = parser.parse_args()
    results = {}
    for name, size in sizes(parser, arguments.sizes, arguments.device).items():
        case = make_case(size, device=arguments.device)
        calls, working, failed = {}, {}, {}
        for each, loss in losses(size).items():
            working[each], why = attempt(partial(working_bytes, loss, case))
            if why is None:
                calls[each] = partial(forward_and_backward, loss, case)
            else:
                failed[each] = why
        of_calls = in_turn(calls, arguments.repeats, failed=failed)
        times = {each: summary(seconds) for each, seconds in of_calls.items()}
        results[name] = {"size": vars(size), "times": times, "working_bytes": working, "failed": failed}
        print(f"\n{name}: N={size.tokens} K={size.components} D={size.features} V={size.classes:,}")
        plain_s = times.get("plain labels", {}).get("median_s", math.nan)
        for each, found in times.items():
            ratio = found["median_s"] / plain_s
            print(f"  {each:24} {found['median_s']:8.3f} s  {ratio:5.2f} of plain  {working[each] / 2**20:8,.0f} MiB")
        for each, why in failed.items():
            print(f"  {each:24} {why}")
        result = {"label_smoothing": SMOOTHING, "repeats": arguments.repeats, "results": results}
        path = save(f"{Path(__file__).stem}.{arguments.device}", result)  # after each: what comes may take it along
    print(f"\n-> {path}")
    return 1 if any(OURS & found["failed"].keys() for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
