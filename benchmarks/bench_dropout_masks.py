"""How long do DropConnect's masks take in a training step of Penn Treebank's sizes, by the way they are drawn?"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import in_turn, save, summary
from highrank.models import WeightDropout

SHAPES = ((4600, 1150), (4600, 1150), (2480, 620))  # the paper's hidden-to-hidden matrices
P = 0.5

Drop = Callable[[Tensor, torch.Generator], Tensor]


def highrank(weight: Tensor, generator: torch.Generator) -> Tensor:
    dropout = WeightDropout(P)
    dropout.generator = generator
    return dropout(weight)


def floats(weight: Tensor, generator: torch.Generator) -> Tensor:
    return weight * torch.empty_like(weight).uniform_(generator=generator).ge_(P).div_(1 - P)


def bernoulli(weight: Tensor, generator: torch.Generator) -> Tensor:
    return weight * torch.empty_like(weight).bernoulli_(1 - P, generator=generator).div_(1 - P)


def int16(weight: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.empty_like(weight, dtype=torch.int16).random_(-(2**15), None, generator=generator)
    return weight * torch.ge(bits, int(P * 2**16) - 2**15, out=torch.empty_like(weight)).div_(1 - P)


CANDIDATES: dict[str, Drop] = {
    "highrank": highrank,
    "float32 uniform_": floats,
    "bernoulli_": bernoulli,
    "int16 random_": int16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=51)
    arguments = parser.parse_args()
    weights = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
    upstream = [torch.randn(shape) for shape in SHAPES]

    def forward(drop: Drop) -> list[Tensor]:
        return [drop(weight, torch.Generator().manual_seed(seed)) for seed, weight in enumerate(weights)]

    def forward_and_backward(drop: Drop) -> None:
        torch.autograd.grad(forward(drop), weights, upstream)

    results = {}
    for name, call in (("forward", forward), ("forward_and_backward", forward_and_backward)):
        calls = {candidate: partial(call, drop) for candidate, drop in CANDIDATES.items()}
        results[name] = {candidate: summary(times) for candidate, times in in_turn(calls, arguments.repeats).items()}
        for candidate, times in results[name].items():
            print(f"{name:22} {candidate:18} {1e3 * times['median_s']:6.1f} ms")
    path = save(Path(__file__).stem, {"shapes": SHAPES, "p": P, "repeats": arguments.repeats, "results": results})
    print(f"-> {path}")


if __name__ == "__main__":
    main()
