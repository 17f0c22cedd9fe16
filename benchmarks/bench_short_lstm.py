"""How long does one LSTM layer take on a few tokens, forward and backward, beside PyTorch's?"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import highrank.cli.environment  # noqa: F401 - as the command line has it, said before PyTorch is loaded

# isort: split
import torch
from torch import Tensor

from benchmarks.harness import in_turn, save, summary
from highrank.models.short_lstm import short_lstm

Size = tuple[int, int, int, int]

# (steps, batch, in, out): of dynamic evaluation with penn-small and penn, and what they would be in training.
SIZES = [(5, 1, 128, 320), (5, 1, 320, 256), (5, 1, 280, 960), (16, 1, 128, 320), (70, 1, 128, 320), (20, 10, 128, 320)]


def ours(sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
    return short_lstm(sequence, state, *weights)[0]


def torchs(sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
    return torch.lstm(sequence, state, weights, True, 1, 0.0, True, False, False)[0]


def layer(
    run: Callable[..., Tensor], steps: int, batch: int, wide_in: int, wide_out: int, *, device: str = "cpu"
) -> Callable[[], object]:
    torch.manual_seed(0)
    sequence = torch.randn(steps, batch, wide_in, device=device, requires_grad=True)
    state = (torch.zeros(1, batch, wide_out, device=device), torch.zeros(1, batch, wide_out, device=device))
    sizes = [(4 * wide_out, wide_in), (4 * wide_out, wide_out), (4 * wide_out,), (4 * wide_out,)]
    weights = [torch.randn(size, device=device).mul_(0.05).requires_grad_() for size in sizes]
    upstream = torch.randn(steps, batch, wide_out, device=device)
    return lambda: torch.autograd.grad(run(sequence, state, weights), [sequence, *weights], upstream)


def layer_times(
    sizes: Sequence[Size], runs: Mapping[str, Callable[..., Tensor]], repeats: int
) -> Iterator[tuple[Size, str, dict[str, dict[str, float]]]]:
    """For each of the sizes: itself, in words, and the times of a layer run in each of the ways, in turn."""
    for size in sizes:
        candidates = {name: layer(run, *size) for name, run in runs.items()}
        times = {name: summary(seconds) for name, seconds in in_turn(candidates, repeats, warm_up=3).items()}
        steps, batch, wide_in, wide_out = size
        yield size, f"{steps:3} steps, batch {batch:2}, {wide_in:4} -> {wide_out:4}", times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    arguments = parser.parse_args()
    rows = []
    for size, words, times in layer_times(SIZES, {"highrank": ours, "torch": torchs}, arguments.repeats):
        ratio = times["torch"]["median_s"] / times["highrank"]["median_s"]
        rows.append({"steps_batch_in_out": size, "times": times, "times_faster": ratio})
        print(f"{words}: {ratio:.2f} times faster than torch.lstm")
    print(save(Path(__file__).stem, {"repeats": arguments.repeats, "layers": rows}))


if __name__ == "__main__":
    main()
