"""Writes the tables and plots of docs/loss.md from benchmarks/results. Needs Altair: pip install '.[report]'"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks.harness import RESULTS
from benchmarks.losses import REFERENCE, default_of_ours
from highrank.report.theme import SHAPES, chart_config

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- figures: python -m benchmarks.report_loss -->\n", "<!-- end of figures -->"
DECADES = [step * 10.0**power for power in range(-4, 6) for step in (1, 2, 5)]  # of a logarithmic axis
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def read(name: str) -> list[dict[str, Any]]:
    """NAME.json, and NAME.WHAT.json of other machines or models; and what the file is called."""
    return [{"file": path.stem} | json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{name}.*json"))]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] + ["--:"] * (len(head) - 1), *rows)] + [""]


def processor(found: dict[str, Any]) -> str:
    device = found["about"]["device"]
    return str(device["gpu"] or device["cpu"])


def where(found: dict[str, Any]) -> str:
    device = found["about"]["device"]
    threads = device["threads"]
    what = processor(found) + ("" if device["gpu"] else f", {threads} thread{'s' * (threads > 1)}")
    versions = found["about"]["versions"]
    return f"{what}, PyTorch {versions['torch']}, commit {found['about']['commit']}"


def speed(device: str, found: dict[str, Any]) -> list[str]:
    lines = [f"## Time on a {DEVICES[device]}: {processor(found)}", "", f"Forward and backward. {where(found)}.", ""]
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
        lines += table(["", "ms", "p20 - p80", "GFLOP/s", "time / ours"], rows)
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
        lines += table(["", *others], cells)
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


def growth_panel(results: dict[str, Any], axis: str, measure: str, title: str) -> alt.Chart:
    """Time or memory of every candidate as one size grows, on two logarithmic axes."""
    sizes = [
        {"candidate": name, "size": size, "seconds": seconds, "MiB": size_bytes / 2**20}
        for name, by_axis in results.items()
        for size, seconds, size_bytes in zip(
            by_axis[axis]["values"], by_axis[axis]["seconds"], by_axis[axis]["working_bytes"], strict=True
        )
    ]
    values = sorted({row["size"] for row in sizes})
    x = alt.X(
        "size:Q",
        title=axis,
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=values, format=",", grid=False),
    )
    y = alt.Y(
        f"{measure}:Q", title=title, scale=alt.Scale(type="log", nice=False), axis=alt.Axis(values=DECADES, format="~g")
    )
    lines = alt.Chart({"values": sizes}).mark_line(point={"size": 40})
    return lines.encode(x=x, y=y, **by("candidate", list(results))).properties(width=170, height=160)


def by(field: str, names: list[str]) -> dict[str, Any]:
    """Colour and shape of the lines of a plot, with one legend."""
    legend = alt.Legend(orient="top", title=None)
    return {
        "color": alt.Color(f"{field}:N", scale=alt.Scale(domain=names), legend=legend),
        "shape": alt.Shape(f"{field}:N", scale=alt.Scale(domain=names, range=SHAPES[: len(names)]), legend=legend),
    }


def save(chart: alt.TopLevelMixin, name: str) -> Path:
    """As SVG beside the page; the same bytes from the same figures."""
    path = DOCS / "figures" / name
    path.parent.mkdir(exist_ok=True)
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    svg = vl_convert.vegalite_to_svg({**chart.to_dict(), "config": chart_config("paper")}, vl_version=version)
    path.write_text(svg + "\n")
    return path


def growth(device: str, found: dict[str, Any]) -> list[str]:
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
    rows_of_panels = [
        alt.hconcat(*(growth_panel(found["results"], axis, measure, title) for axis in axes)).resolve_scale(y="shared")
        for measure, title in (("seconds", "seconds"), ("MiB", "MiB beside inputs and gradients"))
    ]
    path = save(alt.vconcat(*rows_of_panels), f"{found['file'].removeprefix('bench_').replace('.', '_')}.svg")
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


def small(device: str, found: dict[str, Any]) -> list[str]:
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
        f"time / ours reaches 1 the textbook's formula takes less time. Float32, forward and backward. {where(found)}.",
        "",
        *table(["N", "K", "D", "V", "highrank, ms", "textbook, ms", "time / ours", "highrank's reference, ms"], rows),
    ]


def smoothed(device: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## Smoothed labels on a {DEVICES[device]}",
        "",
        f"`label_smoothing={found['label_smoothing']}` beside plain labels, the same loss from all log-probabilities, "
        "and the textbook's formula, in turn. Float32, forward and backward; memory beside inputs and gradients. "
        "PyTorch's `F.linear_cross_entropy` does not cut into chunks with smoothed labels: it is "
        f"`cross_entropy(linear)` then. {where(found)}.",
        "",
    ]
    for name, result in found["results"].items():
        size, times = result["size"], result["times"]
        plain = times.get("plain labels")
        lines += [
            f"**{name}**: N = {size['tokens']:,}, K = {size['components']}, D = {size['features']}, "
            f"V = {size['classes']:,}.",
            "",
            *table(
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


def posterior_filter(measured: list[dict[str, Any]]) -> list[str]:
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
        lines += trained_on(found, f"posteriors{number or ''}.svg")
    return lines


def trained_on(found: dict[str, Any], figure: str) -> list[str]:
    lines = [f"{where(found)}.", ""]
    histograms: list[dict[str, Any]] = []
    for result in found["results"].values():
        components = result["model"]["num_components"]
        shares = result["posteriors"]["share_below"]
        epoch = "an epoch of " if result.get("whole_epoch") else ""
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
        histogram = result["posteriors"]["histogram"]
        decades = [f"<{histogram['edges'][1]:.0e}", *(f"{edge:.0e}" for edge in histogram["edges"][1:-1])]
        histograms += [
            {"model": f"K = {components}", "posterior": decade, "share": 100 * share}
            for decade, share in zip(decades, histogram["share"], strict=True)
        ]
    x = alt.X("posterior:O", sort=decades, title="posterior, from this to ten times it", axis=alt.Axis(labelAngle=0))
    y = alt.Y("share:Q", title="% of all (token, component)")
    models = list(dict.fromkeys(row["model"] for row in histograms))
    chart = alt.Chart({"values": histograms}).mark_line(point={"size": 50})
    path = save(chart.encode(x=x, y=y, **by("model", models)).properties(width=420, height=210), figure)
    return [*lines, f"![Histogram of posteriors on held-out text](figures/{path.name})", ""]


PARTS = {
    "bench_loss_speed": speed,
    "bench_loss_memory": memory,
    "bench_loss_growth": growth,
    "bench_small_calls": small,
    "bench_label_smoothing": smoothed,
}


def main() -> None:
    lines = [""]
    for device in DEVICES:
        for name, write in PARTS.items():
            measured = read(f"{name}.{device}")
            for found in measured:
                lines += write(device, found)
            if device == "cuda" and not measured:
                lines += [f"`{name}` on a GPU: not measured yet.", ""]
    filtered = read("bench_posterior_filter")
    if filtered:
        lines += posterior_filter(filtered)
    page = DOCS / "loss.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    print(f"-> {page}")


if __name__ == "__main__":
    main()
