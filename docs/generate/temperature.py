"""The table of what a tuned softmax temperature brings, from ``benchmarks/results/bench_temperature.json``."""

import statistics
from collections.abc import Mapping
from typing import Any

from docs.generate.markdown import table
from docs.generate.results import read_results

__all__ = ["COMMAND", "temperature_table"]

FILE = "bench_temperature.json"
COMMAND = "python -m benchmarks.bench_temperature RUN..."
STAGES = {"train": "trained", "finetune": "fine-tuned"}


def temperature_table() -> str:
    """A row for each run, and what they have in common; or the command that has not been run."""
    found = read_results().get(FILE)
    if found is None:
        return f"Not run yet: `{COMMAND}`.\n"
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    rows = [
        [
            f"`{name}`",
            STAGES[result["stage"]],
            f"{result['temperature']:g}",
            f"{result['test_perplexity']['untempered']:.2f}",
            f"{result['test_perplexity']['tempered']:.2f}",
            f"{result['test_gain_nats']:.4f}",
        ]
        for name, result in results.items()
    ]
    gains = [result["test_gain_nats"] for result in results.values()]
    said = (
        f"Of {len(gains)} runs: {statistics.mean(gains):.4f} nats on average, "
        f"from {min(gains):.4f} to {max(gains):.4f}. From [benchmarks/results/{FILE}](../benchmarks/results/{FILE})."
    )
    head = ["run", "model", "temperature", "test perplexity at 1", "at the temperature", "gain, nats"]
    return f"{table(head, rows, numbers=range(2, len(head)))}\n{said}\n"
