"""Writes the tables and plots of docs/loss.md from benchmarks/results. Needs matplotlib"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.harness import RESULTS

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- figures: python -m benchmarks.report_loss -->\n", "<!-- end of figures -->"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] + ["--:"] * (len(head) - 1), *rows)] + [""]


def where(found: dict[str, Any]) -> str:
    device = found["about"]["device"]
    what = device["gpu"] or f"{device['cpu']}, {device['threads']} threads"
    versions = found["about"]["versions"]
    return f"{what}, PyTorch {versions['torch']}, commit {found['about']['commit']}"


def speed(device: str, found: dict[str, Any]) -> list[str]:
    lines = [f"## Time on a {DEVICES[device]}", "", f"Forward and backward. {where(found)}.", ""]
    for name, result in found["results"].items():
        size = result["size"]
        lines += [
            f"**{name.partition('.')[0]}**, {result['dtype']}: N = {size['tokens']:,}, K = {size['components']}, "
            f"D = {size['features']}, V = {size['classes']:,}. {result['fastest_of_ours']} runs at "
            f"{100 * result['share_of_large_product']:.0f}% of the rate of the machine's large product.",
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
                    f"{result['operations_per_s'][candidate] / 1e9:,.0f}",
                    "" if faster is None else f"{faster:.2f}",
                ]
            )
        rows += [[candidate, why, "", "", ""] for candidate, why in result["failed"].items()]
        lines += table(["", "ms", "p20 - p80", "GFLOP/s", "time / ours"], rows)
    return lines


def memory(device: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## Memory on a {DEVICES[device]}",
        "",
        f"MiB beside inputs and gradients, by the allocator. {where(found)}.",
        "",
    ]
    results = found["results"]
    names = list(dict.fromkeys(name for result in results.values() for name in result["working_bytes"]))

    def cell(value: int | str | None) -> str:
        return "" if value is None else value if isinstance(value, str) else f"{value / 2**20:,.0f}"

    rows = [[name, *(cell(result["working_bytes"].get(name)) for result in results.values())] for name in names]
    rows += [["*one (N, K, V) in float32*", *(cell(result["bytes_of_logits"]) for result in results.values())]]
    return lines + table(["", *results], rows)


def growth(device: str, found: dict[str, Any]) -> list[str]:
    axes = list(next(iter(found["results"].values())))
    figure, panels = plt.subplots(2, len(axes), figsize=(3 * len(axes), 5.4), sharey="row", layout="constrained")
    rows = []
    for name, by_axis in found["results"].items():
        for column, axis in enumerate(axes):
            result = by_axis[axis]
            panels[0, column].loglog(result["values"], result["seconds"], "o-", label=name)
            panels[1, column].loglog(result["values"], [x / 2**20 for x in result["working_bytes"]], "o-", label=name)
            panels[1, column].set_xlabel(axis)
            for panel in panels[:, column]:
                panel.set_xticks(result["values"], [f"{value:,}" for value in result["values"]], minor=False)
                panel.xaxis.minorticks_off()
        rows.append(
            [
                name,
                *(f"{by_axis[axis]['exponent_of_time']:.2f}" for axis in axes),
                *(f"{by_axis[axis]['exponent_of_working_bytes']:.2f}" for axis in axes),
            ]
        )
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("MiB beside inputs and gradients")
    panels[0, 0].legend(frameon=False)
    path = DOCS / "figures" / f"loss_growth_{device}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    base = ", ".join(f"{axis} {value:,}" for axis, value in found["base"].items())
    return [
        f"## Growth on a {DEVICES[device]}",
        "",
        f"One size grows, the others stay at {base}. Fitted exponents: 1 is linear, 0 is flat. {where(found)}.",
        "",
        *table(["", *(f"time: {axis}" for axis in axes), *(f"memory: {axis}" for axis in axes)], rows),
        f"![Time and memory as each size grows](figures/{path.name})",
        "",
    ]


def posterior_filter(found: dict[str, Any]) -> list[str]:
    lines = [
        "## The posterior filter",
        "",
        "Small models (`penn-small` with more components), trained briefly on Penn Treebank, then trained on from the "
        "same weights with the same masks, the thresholds in turn. `min_posterior` 0 keeps every row. A step is the "
        f"whole training step, of which the head is a part. {where(found)}.",
        "",
    ]
    figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for result in found["results"].values():
        components = result["model"]["num_components"]
        shares = result["posteriors"]["share_below"]
        ranked = ", ".join(f"{x:.3f}" for x in result["posteriors"]["mean_of_sorted"][:5])
        lines += [
            f"**K = {components}**, perplexity {math.exp(result['valid_loss_nats_before']):.0f} on held-out text. "
            f"Posteriors there: largest, second largest, ... on average {ranked}.",
            "",
            *table(
                [
                    "min_posterior",
                    "rows below it",
                    "ms a step",
                    "times faster",
                    "training loss",
                    f"valid loss after {result['updates']} updates",
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
        histogram = result["posteriors"]["histogram"]
        decades = [f"<{histogram['edges'][1]:.0e}", *(f"{edge:.0e}" for edge in histogram["edges"][1:-1])]
        panel.plot(decades, [100 * share for share in histogram["share"]], "o-", label=f"K = {components}")
    panel.set_xlabel("posterior, from this to ten times it")
    panel.set_ylabel("% of all (token, component)")
    panel.legend(frameon=False)
    path = DOCS / "figures" / "posteriors.svg"
    figure.savefig(path, metadata={"Date": None})
    return [*lines, f"![Histogram of posteriors on held-out text](figures/{path.name})", ""]


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "highrank"  # the same bytes from the same figures
    (DOCS / "figures").mkdir(exist_ok=True)
    lines = [""]
    for device in DEVICES:
        for name, write in (("speed", speed), ("memory", memory), ("growth", growth)):
            found = read(f"bench_loss_{name}.{device}")
            if found is not None:
                lines += write(device, found)
            elif device == "cuda":
                lines += [f"{name.capitalize()} on a GPU: not measured yet.", ""]
    found = read("bench_posterior_filter")
    if found is not None:
        lines += posterior_filter(found)
    page = DOCS / "loss.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    print(f"-> {page}")


if __name__ == "__main__":
    main()
