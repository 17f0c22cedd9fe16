"""How long does a recurrent layer take on a GPU, forward and backward: cuDNN's, beside the persistent kernels?"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_lstm_precision import rounded
from benchmarks.bench_short_lstm import Size, layer, torchs
from benchmarks.harness import Worker, attempt, in_turn, save, summary
from highrank.models.persistent_lstm import cannot_run, persistent_lstm

# (steps, batch, in, out): the layers of penn and wikitext-2, and those of penn with the longest and a short segment.
SIZES: list[Size] = [
    (70, 12, 280, 960),
    (70, 12, 960, 960),
    (70, 12, 960, 620),
    (70, 5, 300, 1150),
    (70, 5, 1150, 1150),
    (70, 5, 1150, 650),
    (110, 12, 960, 960),
    (20, 12, 960, 960),
]
# A call is several layers, which the host asks for without waiting, as the training loop does.
LAYERS_A_CALL = 30
FIRST_CALL_S = 180.0  # which compiles


def persistent(sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
    """As under autocast: the casts of inputs and weights, and those of their gradients, are part of it."""
    short = [x.bfloat16() for x in (sequence, state[0], *weights)]
    return persistent_lstm(short[0], (short[1], state[1]), *short[2:])[0].float()


def with_each_launch(device: torch.device, size: Size, table: Sequence[Any]) -> dict[str, Callable[..., Tensor]]:
    """By what it is, a layer by every launch of the table that the GPU can hold; the first of them is what runs.

    Each leaves the kernels with its own launch alone, which its backward pass takes too.
    """
    from highrank.models import persistent_lstm_kernels as kernels

    _, batch, _, width = size
    ways = {}
    for launch in table:
        kernels.LAUNCHES = (launch,)
        if cannot_run(device, torch.bfloat16, batch, width) is None:

            def run(*arguments: object, launch: object = launch) -> Tensor:
                kernels.LAUNCHES = (launch,)
                return persistent(*arguments)

            ways[f"triton bfloat16, {launch.units} units, {launch.group} pieces"] = run
    return ways


def make_layer(device: str) -> Callable[[], None]:
    once = layer(persistent, *SIZES[0], device=device)

    def call() -> None:
        once()
        torch.cuda.synchronize()

    return call


def many(once: Callable[[], object]) -> None:
    for _ in range(LAYERS_A_CALL):
        once()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type != "cuda" or not torch.cuda.is_available():
        parser.error(f"--device: expected a CUDA device that is here, got {device}")
    # Programs that wait for one another for ever would hold this process too.
    first = Worker(partial(make_layer, arguments.device), within_s=FIRST_CALL_S)
    if (why := attempt(first)[1]) is not None:
        parser.exit(1, f"a layer by the persistent kernels: {why}\n")
    first.close()
    from highrank.models.persistent_lstm_kernels import LAUNCHES  # needs Triton, as the process above has shown

    rows = []
    for size in SIZES:
        runs = {"cuDNN float32 (TF32)": torchs, "cuDNN bfloat16": rounded} | with_each_launch(device, size, LAUNCHES)
        calls = {name: partial(many, layer(run, *size, device=arguments.device)) for name, run in runs.items()}
        failed: dict[str, str] = {}  # too much shared memory, too many registers
        of_calls = in_turn(calls, arguments.repeats, warm_up=3, failed=failed)
        times = {name: summary([each / LAYERS_A_CALL for each in seconds]) for name, seconds in of_calls.items()}
        base = times.get("cuDNN bfloat16")  # which may have failed, too
        faster = {} if base is None else {name: base["median_s"] / found["median_s"] for name, found in times.items()}
        rows.append(
            {
                "steps_batch_in_out": size,
                "times": times,
                "times_faster_than_cudnn_bfloat16": faster,
                "failed": failed,
            }
        )
        print("{} steps, batch {}, {} -> {}".format(*size))
        for name, found in times.items():
            print(
                f"  {name:40} {1e6 * found['median_s']:8.0f} us, {faster.get(name, math.nan):.2f} times as fast",
                flush=True,
            )
        for name, why in failed.items():
            print(f"  {name:40} failed: {why}", flush=True)
        result = {"repeats": arguments.repeats, "layers_a_call": LAYERS_A_CALL, "layers": rows}
        path = save(f"{Path(__file__).stem}.cuda", result)  # after each size: what comes may take it along
    print(f"-> {path}")


if __name__ == "__main__":
    main()
