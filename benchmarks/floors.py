"""What must a training step cost at least, part by part, and where does its time go? (operations, bytes, a profile)

The floor of a part is the larger of operations / peak rate and bytes / bandwidth, each tensor moved once. The rates of
the CPU are measured; those of an H100 SXM are NVIDIA's data sheet: 989 TFLOP/s in bfloat16 and 67 in float32 (dense,
the latter without tensor cores), 3.35 TB/s.
"""

import argparse
import statistics
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import highrank.cli.environment  # noqa: F401 - as the command line has it, said before PyTorch is loaded

# isort: split
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_train_step import make_step
from benchmarks.harness import in_turn, save
from highrank.data.catalog import CATALOG
from highrank.runs import Config, find_recipe, read_config

FLOAT = 4
H100 = {"bfloat16": 989e12, "float32": 67e12, "bytes_per_s": 3.35e12}


class Part(NamedTuple):
    """Of one training step, forward and backward."""

    name: str
    operations: int
    bytes_moved: int


def parts(config: Config, vocab_size: int) -> list[Part]:
    """Every part of a step of ``bptt`` time steps: T * B tokens."""
    model, train = config.model, config.train
    tokens = train.bptt * train.batch
    components, width, last = model.components, model.embedding_features, model.last_hidden_features
    sizes = [width, *[model.hidden_features] * (model.num_layers - 1), last]
    # A product of the forward pass comes with two in the backward pass, each 2 operations a multiplication.
    found = []
    for number, (wide_in, wide_out) in enumerate(pairwise(sizes), start=1):
        weights = 4 * wide_out * (wide_in + wide_out)
        # Weights are read twice and their gradient written; of a token input, gates, cell, output and their gradients.
        moved = 3 * weights + 2 * tokens * (wide_in + 6 * wide_out)
        found.append(Part(f"LSTM layer {number}", 6 * tokens * weights, FLOAT * moved))
    contexts = components * width
    found.append(
        Part(
            "contexts and priors",
            6 * tokens * last * (contexts + components),
            FLOAT * (3 * last * (contexts + components) + 4 * tokens * contexts),
        )
    )
    found.append(
        Part(
            "head: three products",
            6 * tokens * contexts * vocab_size,
            # Fused: logits never leave the chip.
            FLOAT * (3 * vocab_size * width + 3 * tokens * contexts),
        )
    )
    parameters = vocab_size * (width + 1) + sum(4 * o * (i + o + 2) for i, o in pairwise(sizes))
    parameters += last * (contexts + components) + contexts
    # The norm reads the gradients; the update reads them and the weights, and writes the weights.
    found.append(Part("clip and update", 6 * parameters, FLOAT * 4 * parameters))
    return found


def cpu_rates() -> dict[str, float]:
    """The best of a few: operations/s of a large product, bytes/s of a copy (read and written)."""
    square, long = torch.randn(3072, 3072), torch.randn(2**26)
    into = torch.empty_like(long)
    return {
        "float32": 2 * 3072**3 / min(_seconds(lambda: square @ square) for _ in range(5)),
        "bytes_per_s": 2 * FLOAT * len(long) / min(_seconds(lambda: into.copy_(long)) for _ in range(5)),
    }


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def floors(found: list[Part], operations_per_s: float, bytes_per_s: float) -> dict[str, float]:
    return {part.name: max(part.operations / operations_per_s, part.bytes_moved / bytes_per_s) for part in found}


def where_the_time_goes(recipe: str, data: str | None, steps: int) -> tuple[float, dict[str, float]]:
    """The median time of a step, and seconds a step of the operations that take most, without those that they call."""
    step = make_step("highrank", recipe, data)
    median_s = statistics.median(in_turn({"step": step}, steps)["step"])
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    own: Counter[str] = Counter()
    for event in found.key_averages():
        own[event.key] += event.self_cpu_time_total / 1e6 / steps
    return median_s, dict(own.most_common(20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["penn", "wikitext-2"])
    parser.add_argument("--data", nargs="+", help="the folders of their corpora")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    rates = cpu_rates()
    result: dict[str, Any] = {"cpu": rates, "h100": H100, "recipes": {}}
    for recipe, data in zip(arguments.recipes, arguments.data or [None] * len(arguments.recipes), strict=True):
        config = read_config(find_recipe(recipe))
        found = parts(config, CATALOG[config.data.corpus].vocabulary_size)
        step_s, operations_s = where_the_time_goes(recipe, data, arguments.steps)
        result["recipes"][recipe] = {
            "parts": [part._asdict() for part in found],
            "floor_s": {
                "cpu float32": floors(found, rates["float32"], rates["bytes_per_s"]),
                "H100 float32": floors(found, H100["float32"], H100["bytes_per_s"]),
                "H100 bfloat16": floors(found, H100["bfloat16"], H100["bytes_per_s"]),
            },
            "step_s": step_s,
            "operations_s": operations_s,
        }
        for name, seconds in result["recipes"][recipe]["floor_s"].items():
            print(f"{recipe:12} {name:14} {1e3 * sum(seconds.values()):9.2f} ms a step")
    print(save(Path(__file__).stem, result))


if __name__ == "__main__":
    main()
