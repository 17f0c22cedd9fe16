"""What are the parts of a step shared by several workers, and what do they say of more workers than there are here?

``python -m benchmarks.scaling [--recipe R] [--device cuda] [--measured-workers W]`` measures a pass over one
micro-batch, the rest of a step and the sum over workers, puts them together for 1 to 64 workers, checks the model on
as many workers as asked, and writes results/scaling.DEVICE.json. The words are random: time does not depend on them.
Everything is measured with one thread a process, as torchrun starts its workers: the parts too, or they would be those
of a worker with more cores.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec.structs
import numpy as np

import highrank.cli.environment  # noqa: F401 - as the command line has it, said before PyTorch is loaded

# isort: split
import torch

from benchmarks.bench_train_step import our_step
from benchmarks.harness import save
from highrank.cli.launch import leave
from highrank.data.batches import Columns
from highrank.data.catalog import CATALOG
from highrank.runs import Config, build_model, choose_device, find_recipe, parameter_count, read_config
from highrank.workers import ALONE, Workers, join_workers

WORKERS = (1, 2, 3, 4, 8, 16, 32, 64)
SEGMENTS = 40  # of text: more than any measurement walks
LATENCY_BYTES = 8  # the sum of one number: nothing but latency
FLOAT64_BYTES = 8
THREADS = 1  # of a worker


def with_micro_batches(config: Config, count: int) -> Config:
    """The recipe with so many micro-batches of its own width in a batch."""
    train = msgspec.structs.replace(config.train, batch=count * config.micro_batch, micro_batch=config.micro_batch)
    return msgspec.structs.replace(config, train=train)


def step_of(config: Config, device: torch.device, workers: Workers = ALONE) -> Callable[[], float]:
    """The training loop's own update at the recipe's sizes; returns its seconds."""
    train, vocab_size = config.train, CATALOG[config.data.corpus].vocabulary_size
    tokens = np.random.default_rng(0).integers(vocab_size, size=train.batch * train.bptt * SEGMENTS, dtype=np.int32)
    model = build_model(config, vocab_size).to(device)
    update = our_step(model, config, Columns(tokens, train.batch), workers=workers)

    def step() -> float:
        began = time.perf_counter()
        update().item()  # which waits for a GPU
        return time.perf_counter() - began

    return step


@contextmanager
def threads_of_a_worker() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def median_s(calls: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Medians of the seconds that the calls return, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            seconds = call()
            if number:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def parts(config: Config, device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of a pass over a micro-batch and of all else in a step; bytes that a worker's sum has."""
    few, many = 2, 6
    steps = {str(count): step_of(with_micro_batches(config, count), device) for count in (few, many)}
    medians = median_s(steps, repeats)
    micro_batch_s = (medians[str(many)] - medians[str(few)]) / (many - few)
    parameters = parameter_count(config, CATALOG[config.data.corpus].vocabulary_size)
    return {
        "micro_batch_s": micro_batch_s,
        "rest_s": medians[str(few)] - few * micro_batch_s,
        "sum_bytes": FLOAT64_BYTES * parameters,
    }


def between_workers(config: Config, device: torch.device, repeats: int, sum_bytes: int) -> dict[str, float]:
    """To be run by every worker: seconds of a step with a micro-batch each, and of sums of two sizes."""
    with join_workers(600) as workers:
        step = step_of(with_micro_batches(config, workers.count), device, workers)
        numbers = {
            name: torch.zeros(size // FLOAT64_BYTES, dtype=torch.float64, device=device)
            for name, size in (("latency_s", LATENCY_BYTES), ("sum_s", sum_bytes))
        }

        def adding_up(tensor: torch.Tensor) -> Callable[[], float]:
            def call() -> float:
                workers.largest(0)  # all begin at once
                began = time.perf_counter()
                workers.add_up([tensor])
                tensor[0].item()
                return time.perf_counter() - began

            return call

        calls = {name: adding_up(tensor) for name, tensor in numbers.items()}
        result = median_s({**calls, "step_s": step}, repeats)
        if not workers.is_first:
            leave(0)
        return result


def model(measured: dict[str, float], bytes_per_s: float, latency_s: float, micro_batches: int) -> list[dict[str, Any]]:
    """Seconds of a step for each number of workers: without any overlap of sending and computing."""
    rows = []
    for workers in WORKERS:
        used = min(workers, micro_batches)
        # A ring: every worker sends and receives 2 (W-1)/W of the sum, in 2 (W-1) rounds.
        sending_s = 2 * (used - 1) / used * measured["sum_bytes"] / bytes_per_s + 2 * (used - 1) * latency_s
        passes = math.ceil(micro_batches / used)
        step_s = passes * measured["micro_batch_s"] + measured["rest_s"] + sending_s * (used > 1)
        rows.append({"workers": workers, "used": used, "passes": passes, "sending_s": sending_s, "step_s": step_s})
    for row in rows:
        row["speed_up"] = rows[0]["step_s"] / row["step_s"]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="wikitext-2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measured-workers", type=int, default=2)
    parser.add_argument("--inside", type=int, default=0, help=argparse.SUPPRESS)  # bytes: one of the workers
    arguments = parser.parse_args()
    with threads_of_a_worker():
        return measure(arguments)


def measure(arguments: argparse.Namespace) -> int:
    config, device = read_config(find_recipe(arguments.recipe)), choose_device(arguments.device)
    if arguments.inside:
        print(json.dumps(between_workers(config, device, arguments.repeats, arguments.inside)))
        return leave(0)
    measured = parts(config, device, arguments.repeats)
    workers = min(
        arguments.measured_workers, torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    )
    result: dict[str, Any] = {"recipe": arguments.recipe, "device": str(device)}
    result |= {"threads_a_worker": torch.get_num_threads(), "parts": measured}
    links = {f"{gigabits} Gbit/s, as a link is sold": (gigabits / 8 * 1e9, 5e-5) for gigabits in (1, 10, 100)}
    if workers > 1:
        together = _together(workers, int(measured["sum_bytes"]), sys.argv[1:])
        share = 2 * (workers - 1) / workers * measured["sum_bytes"]
        links["measured here"] = (share / together["sum_s"], together["latency_s"] / (2 * (workers - 1)))
        expected_s = measured["micro_batch_s"] + measured["rest_s"] + together["sum_s"]
        result |= {"between_workers": {"workers": workers, "expected_step_s": expected_s, **together}}
    own = config.train.batch // config.micro_batch
    result["model"] = [
        {
            "link": name,
            "bytes_per_s": rate,
            "micro_batches": micro_batches,
            "rows": model(measured, rate, latency_s, micro_batches),
        }
        for name, (rate, latency_s) in links.items()
        for micro_batches in sorted({own, max(WORKERS)})
    ]
    print(json.dumps(result, indent=1))
    print(save(f"scaling.{device.type}", result))
    return 0


def _together(workers: int, sum_bytes: int, arguments: list[str]) -> dict[str, float]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    inside = ["-m", "benchmarks.scaling", *arguments, "--inside", str(sum_bytes)]
    done = subprocess.run([sys.executable, "-m", *launcher, *inside], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())
