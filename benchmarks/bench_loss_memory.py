"""How much memory do the loss and its gradients take beyond the inputs and the gradients themselves?"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import attempt, memory_of, save
from benchmarks.losses import Case, Loss, Size, add_sizes, candidates, make_case, ours_failed, sizes


def working_bytes(loss: Loss, case: Case) -> int:
    """The most that one call holds, by the allocator's own count, less the gradients that it leaves."""
    if case.context.is_cuda:
        forward_and_backward(loss, case)  # what libraries keep for themselves is there before
        for leaf in case.leaves:
            leaf.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_and_backward(loss, case)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        for leaf in case.leaves:
            leaf.grad = None
        peak = memory_of(lambda: forward_and_backward(loss, case)).peak_bytes
    return peak - case.bytes_of_gradients


def measure(size: Size, dtype: torch.dtype, device: str) -> dict[str, Any]:
    found: dict[str, int | str | None] = {}
    case = make_case(size, dtype, device)
    for name, loss in candidates(size, device, dtype).items():
        used, why = attempt(partial(working_bytes, loss, case))
        found[name] = used if why is None else why
    return {
        "size": vars(size),
        "dtype": str(dtype).removeprefix("torch."),
        "bytes_of_gradients": case.bytes_of_gradients,
        "bytes_of_logits": size.bytes_of_logits,
        "working_bytes": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_sizes(parser)
    arguments = parser.parse_args()
    results = {}
    for name, size in sizes(parser, arguments.sizes, arguments.device).items():
        for dtype in (torch.float32, torch.bfloat16):
            result = measure(size, dtype, arguments.device)
            results[f"{name}.{result['dtype']}"] = result
            mib = 2**20
            print(
                f"\n{name}, {result['dtype']}: (N, K, V) in float32 is {size.bytes_of_logits / mib:,.0f} MiB, "
                f"the gradients are {result['bytes_of_gradients'] / mib:,.0f} MiB; beside them"
            )
            for candidate, used in result["working_bytes"].items():
                print(f"  {candidate:30} {used if isinstance(used, str) else f'{used / mib:10,.0f} MiB'}")
            # After each: what comes may take it along.
            path = save(f"{Path(__file__).stem}.{arguments.device}", {"results": results})
    print(f"\n-> {path}")
    failed = [name for found in results.values() for name, used in found["working_bytes"].items() if type(used) is str]
    return 1 if ours_failed(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
