"""How much memory do the loss and its gradients take beyond the inputs and the gradients themselves?"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.harness import memory_of, save
from benchmarks.losses import Case, Loss, Size, add_sizes, candidates, make_case, sizes


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
    found: dict[str, Any] = {}
    case = make_case(size, dtype, device)
    for name, loss in candidates(size, device).items():
        try:
            found[name] = working_bytes(loss, case)
        except Exception as error:  # a result, not a reason to stop
            why = "out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
            found[name] = f"{why}: {str(error).partition(chr(10))[0]}"
            for leaf in case.leaves:
                leaf.grad = None
            torch.cuda.empty_cache()
    return {
        "size": vars(size),
        "dtype": str(dtype).removeprefix("torch."),
        "bytes_of_gradients": case.bytes_of_gradients,
        "bytes_of_logits": size.bytes_of_logits,
        "working_bytes": found,
    }


def main() -> None:
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
    path = save(f"{Path(__file__).stem}.{arguments.device}", {"results": results})
    print(f"\n-> {path}")


if __name__ == "__main__":
    main()
