"""The loss's figures on its page, from ``benchmarks/results``."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.losses import REFERENCE, default_of_ours
from docs.generate.loss_plots import growth_plot, posteriors_plot
from docs.generate.markdown import table
from docs.generate.results import results_of

__all__ = ["loss_figures"]

DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def loss_figures() -> str:
    """What was measured on every device, then of the posterior filter."""
    lines = []
    for device in DEVICES:
        for benchmark, write in PARTS.items():
            measured = results_of(f"{benchmark}.{device}")
            for file, found in measured:
                lines += write(device, {"file": file, **found})
            if device == "cuda" and not measured:
                lines += [f"`{benchmark}` on a GPU: not measured yet.", ""]
    if filtered := [found for _, found in results_of("bench_posterior_filter")]:
        lines += _posterior_filter(filtered)
    return "\n".join(lines)


def _figures(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of numbers, but for its first column."""
    return table(head, rows, numbers=range(1, len(head)))


def _processor(found: dict[str, Any]) -> str:
    device = found["about"]["device"]
    return str(device["gpu"] or device["cpu"])


def _where(found: dict[str, Any]) -> str:
    device = found["about"]["device"]
    threads = device["threads"]
    what = _processor(found) + ("" if device["gpu"] else f", {threads} thread{'s' * (threads > 1)}")
    versions = found["about"]["versions"]
    return f"{what}, PyTorch {versions['torch']}, commit {found['about']['commit']}"


def _speed(device: str, found: dict[str, Any]) -> list[str]:
    lines = [f"## Time on a {DEVICES[device]}: {_processor(found)}", "", f"Forward and backward. {_where(found)}.", ""]
    for name, result in found["results"].items():
        size, rates, ours = result["size"], result["operations_per_s"], default_of_ours(result["times"], device)
        least = f"the three products would take {1000 * result['operations'] / rates['large product']:,.0f} ms."
        share = f"at the rate of the machine's large product {least}"
        if ours:
            percent = f"{100 * result['share_of_large_product']:.0f}%"
            share = f"{ours} runs at {percent} of the rate of the machine's large product, at which {least}"
        lines += [
            f"**{name.partition('.')[0]}**, {result['dtype']}: N = {size['tokens']:,}, K = {size['components']}, "
            f"D = {size['features']}, V = {size['classes']:,}. {share}",
            "",
        ]
        rows = []
        for candidate, times in result["times"].items():
            faster = result["times_faster"].get(candidate)
            rows.append(
                [
                    candidate,
                    f"{1000 * times['median_s']:,.1f}",
                    f"{1000 * times['p20_s']:,.1f} - {1000 * times['p80_s']:,.1f}",
                    f"{rates[candidate] / 1e9:,.0f}",
                    "" if faster is None else f"{faster:.2f}",
                ]
            )
        rows += [[candidate, why, "", "", ""] for candidate, why in result["failed"].items()]
        lines.append(_figures(["", "ms", "p20 - p80", "GFLOP/s", "time / ours"], rows))
    # By inputs in bfloat16 in older files, whose textbook's are in float32.
    ways = {"bfloat16_times_faster": "highrank in bfloat16", "autocast_times_faster": "highrank under autocast"}
    for key, ours in ways.items():
        if not (across := found.get(key)):
            continue
        others = list(dict.fromkeys(other for ratios in across.values() for other in ratios))
        cells = [
            [name, *(f"{ratios[other]:.2f}" if other in ratios else "" for other in others)]
            for name, ratios in across.items()
        ]
        lines += [f"**{ours}** is so many times faster than", ""]
        lines.append(_figures(["", *others], cells))
    return lines


def _memory(device: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## Memory on a {DEVICES[device]}",
        "",
        f"MiB beside inputs and gradients, by the allocator. {_where(found)}.",
        "",
    ]
    results = found["results"]
    names = list(dict.fromkeys(name for result in results.values() for name in result["working_bytes"]))

    def cell(value: int | str | None) -> str:
        return "" if value is None else value if isinstance(value, str) else f"{value / 2**20:,.0f}"

    rows = [[name, *(cell(result["working_bytes"].get(name)) for result in results.values())] for name in names]
    rows += [["*one (N, K, V) in float32*", *(cell(result["bytes_of_logits"]) for result in results.values())]]
    return [*lines, _figures(["", *results], rows)]


def _growth(device: str, found: dict[str, Any]) -> list[str]:
    axes = list(next(iter(found["results"].values())))
    rows = []
    for name, by_axis in found["results"].items():
        rows.append(
            [
                name,
                *(f"{by_axis[axis]['exponent_of_time']:.2f}" for axis in axes),
                *(f"{by_axis[axis]['exponent_of_working_bytes']:.2f}" for axis in axes),
            ]
        )
    base = ", ".join(f"{axis} {value:,}" for axis, value in found["base"].items())
    return [
        f"## Growth on a {DEVICES[device]}",
        "",
        f"One size grows, the others stay at {base}. Fitted exponents: 1 is linear, 0 is flat. {_where(found)}.",
        "",
        _figures(["", *(f"time: {axis}" for axis in axes), *(f"memory: {axis}" for axis in axes)], rows),
        f"![Time and memory as each size grows](figures/{growth_plot(found['file'])})",
        "",
    ]


def _small(device: str, found: dict[str, Any]) -> list[str]:
    rows = []
    for row in found["sizes"]:
        call = row["call"]
        ours, textbook, reference = (
            f"{1000 * call[name]['median_s']:.2f}" if name in call else ""
            for name in (default_of_ours(call, device), "textbook", REFERENCE)
        )
        rows.append(
            [
                *(f"{row['size'][name]:,}" for name in ("tokens", "components", "features", "classes")),
                ours,
                textbook,
                f"{row['times_faster']:.2f}" if "times_faster" in row else "",
                reference,
            ]
        )
    return [
        f"## Small calls on a {DEVICES[device]}",
        "",
        "A call has a fixed cost: some forty small operations, and Python between them. Below the size at which "
        "time / ours reaches 1 the textbook's formula takes less time. Float32, forward and backward. "
        f"{_where(found)}.",
        "",
        _figures(["N", "K", "D", "V", "highrank, ms", "textbook, ms", "time / ours", "highrank's reference, ms"], rows),
    ]


def _smoothed(device: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## Smoothed labels on a {DEVICES[device]}",
        "",
        f"`label_smoothing={found['label_smoothing']}` beside plain labels, the same loss from all log-probabilities, "
        "and the textbook's formula, in turn. Float32, forward and backward; memory beside inputs and gradients. "
        "PyTorch's `F.linear_cross_entropy` does not cut into chunks with smoothed labels: it is "
        f"`cross_entropy(linear)` then. {_where(found)}.",
        "",
    ]
    for name, result in found["results"].items():
        size, times = result["size"], result["times"]
        plain = times.get("plain labels")
        lines += [
            f"**{name}**: N = {size['tokens']:,}, K = {size['components']}, D = {size['features']}, "
            f"V = {size['classes']:,}.",
            "",
            _figures(
                ["", "ms", "p20 - p80", "time / plain labels", "MiB"],
                [
                    [
                        candidate,
                        f"{1000 * seconds['median_s']:,.1f}",
                        f"{1000 * seconds['p20_s']:,.1f} - {1000 * seconds['p80_s']:,.1f}",
                        f"{seconds['median_s'] / plain['median_s']:.2f}" if plain else "",
                        f"{result['working_bytes'][candidate] / 2**20:,.0f}",
                    ]
                    for candidate, seconds in times.items()
                ]
                + [[candidate, why, "", "", ""] for candidate, why in result.get("failed", {}).items()],
            ),
        ]
    return lines


def _posterior_filter(measured: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## The posterior filter",
        "",
        "Small models (`penn-small` with more components), trained briefly on Penn Treebank, then trained on from the "
        "same weights with the same masks, the thresholds in turn. `min_posterior` 0 keeps every row. A step is the "
        "whole training step, of which the head is a part.",
        "",
    ]
    if not any(result.get("whole_epoch") for found in measured for result in found["results"].values()):
        lines += ["What the filter changes over a whole epoch (`--updates epoch`) has not been measured yet.", ""]
    for number, found in enumerate(measured):
        lines += _trained_on(found, posteriors_plot(number))
    return lines


def _trained_on(found: dict[str, Any], plot: str) -> list[str]:
    lines = [f"{_where(found)}.", ""]
    for result in found["results"].values():
        components = result["model"]["num_components"]
        shares = result["posteriors"]["share_below"]
        epoch = "an epoch of " if result.get("whole_epoch") else ""
        ranked = ", ".join(f"{x:.3f}" for x in result["posteriors"]["mean_of_sorted"][:5])
        lines += [
            f"**K = {components}**, perplexity {math.exp(result['valid_loss_nats_before']):.0f} on held-out text. "
            f"Posteriors there: largest, second largest, ... on average {ranked}.",
            "",
            _figures(
                [
                    "min_posterior",
                    "rows below it",
                    "ms a step",
                    "times faster",
                    "training loss",
                    f"valid loss after {epoch}{result['updates']:,} updates",
                ],
                [
                    [
                        threshold,
                        f"{100 * shares[f'{float(threshold):.0e}'.replace('e-0', 'e-')]:.1f}%"
                        if float(threshold)
                        else "",
                        f"{1000 * trial['median_s']:.1f}",
                        f"{trial['times_faster']:.2f}",
                        f"{trial['train_loss_nats']:.5f}",
                        f"{trial['valid_loss_nats']:.5f}",
                    ]
                    for threshold, trial in result["by_min_posterior"].items()
                ],
            ),
        ]
    return [*lines, f"![Histogram of posteriors on held-out text](figures/{plot})", ""]


PARTS = {
    "bench_loss_speed": _speed,
    "bench_loss_memory": _memory,
    "bench_loss_growth": _growth,
    "bench_small_calls": _small,
    "bench_label_smoothing": _smoothed,
}
