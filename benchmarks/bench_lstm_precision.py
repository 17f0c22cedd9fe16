"""How long does a recurrent layer take in bfloat16 on a CPU, forward and backward, beside float32?"""

import argparse
from pathlib import Path

import highrank.cli.environment  # noqa: F401 - as the command line has it, said before PyTorch is loaded

# isort: split
from torch import Tensor

from benchmarks.bench_short_lstm import layer_times, torchs
from benchmarks.harness import save

# (steps, batch, in, out): the layers of penn, the first two of wikitext-2, and those of penn-small.
SIZES = [
    (70, 12, 280, 960),
    (70, 12, 960, 960),
    (70, 12, 960, 620),
    (70, 5, 300, 1150),
    (70, 5, 1150, 1150),
    (20, 10, 128, 320),
    (20, 10, 320, 256),
]


def rounded(sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
    """As under autocast: the casts of inputs and weights, and those of their gradients, are part of it."""
    short = [x.bfloat16() for x in (sequence, *state, *weights)]
    return torchs(short[0], (short[1], short[2]), short[3:]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    for size, words, times in layer_times(SIZES, {"float32": torchs, "bfloat16": rounded}, arguments.repeats):
        ratio = times["bfloat16"]["median_s"] / times["float32"]["median_s"]
        rows.append({"steps_batch_in_out": size, "times": times, "bfloat16_takes": ratio})
        print(f"{words}: bfloat16 takes {ratio:.2f} times as long")
    print(save(Path(__file__).stem, {"repeats": arguments.repeats, "layers": rows}))


if __name__ == "__main__":
    main()
