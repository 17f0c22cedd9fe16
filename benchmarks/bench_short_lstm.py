"""How long does one LSTM layer take on a few tokens, forward and backward, beside PyTorch's?"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import in_turn, save, summary
from highrank.models.short_lstm import short_lstm

# (steps, batch, in, out): of dynamic evaluation with penn-small and penn, and what they would be in training.
SIZES = [(5, 1, 128, 320), (5, 1, 320, 256), (5, 1, 280, 960), (16, 1, 128, 320), (70, 1, 128, 320), (20, 10, 128, 320)]


def ours(sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
    return short_lstm(sequence, state, *weights)[0]


def torchs(sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
    return torch.lstm(sequence, state, weights, True, 1, 0.0, True, False, False)[0]


def layer(run: Callable[..., Tensor], steps: int, batch: int, wide_in: int, wide_out: int) -> Callable[[], object]:
    torch.manual_seed(0)
    sequence = torch.randn(steps, batch, wide_in, requires_grad=True)
    state = (torch.zeros(1, batch, wide_out), torch.zeros(1, batch, wide_out))
    sizes = [(4 * wide_out, wide_in), (4 * wide_out, wide_out), (4 * wide_out,), (4 * wide_out,)]
    weights = [torch.randn(size).mul_(0.05).requires_grad_() for size in sizes]
    upstream = torch.randn(steps, batch, wide_out)
    return lambda: torch.autograd.grad(run(sequence, state, weights), [sequence, *weights], upstream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    arguments = parser.parse_args()
    rows = []
    for sizes in SIZES:
        candidates = {"highrank": layer(ours, *sizes), "torch": layer(torchs, *sizes)}
        times = {name: summary(s) for name, s in in_turn(candidates, arguments.repeats, warm_up=3).items()}
        ratio = times["torch"]["median_s"] / times["highrank"]["median_s"]
        rows.append({"steps_batch_in_out": sizes, "times": times, "times_faster": ratio})
        steps, batch, wide_in, wide_out = sizes
        print(
            f"{steps:3} steps, batch {batch:2}, {wide_in:3} -> {wide_out:3}: {ratio:.2f} times faster than torch.lstm"
        )
    print(save(Path(__file__).stem, {"repeats": arguments.repeats, "layers": rows}))


if __name__ == "__main__":
    main()
