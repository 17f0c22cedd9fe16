"""Tables of what a step costs, from ``benchmarks/results``: in training, in dynamic evaluation, in waiting."""

import json
from collections.abc import Callable
from typing import Any

from docs.generate.markdown import table
from docs.generate.results import RESULTS, results_of

__all__ = [
    "dynamic_evaluation_table",
    "filtered_step_table",
    "floor_table",
    "step_table",
    "time_table",
    "waiting_table",
]

SHOWN_OPERATIONS = 8


def _found() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "floors.json").read_text(encoding="utf-8"))
    return found


def floor_table() -> str:
    """Operations, bytes and the least time of every part."""
    rows = []
    for recipe, found in _found()["recipes"].items():
        floors = found["floor_s"]
        for part in found["parts"]:
            times = [f"{1e3 * floors[machine][part['name']]:,.2f}" for machine in floors]
            rows.append(
                [recipe, part["name"], f"{part['operations'] / 1e9:,.1f}", f"{part['bytes_moved'] / 1e6:,.0f}", *times]
            )
        whole = [f"{1e3 * sum(each.values()):,.2f}" for each in floors.values()]
        operations, moved = (sum(part[key] for part in found["parts"]) for key in ("operations", "bytes_moved"))
        rows.append([recipe, "the whole step", f"{operations / 1e9:,.1f}", f"{moved / 1e6:,.0f}", *whole])
    machines = list(next(iter(_found()["recipes"].values()))["floor_s"])
    head = ["recipe", "part", "10^9 operations", "MB", *(f"{machine}, ms" for machine in machines)]
    return table(head, rows, numbers=range(2, len(head)))


def time_table() -> str:
    """Where the time of our step goes on the CPU, beside its floor."""
    rows = []
    for recipe, found in _found()["recipes"].items():
        seconds = found["operations_s"]
        largest = sum(seconds.values())
        for name in list(seconds)[:SHOWN_OPERATIONS]:
            rows.append([recipe, f"`{name}`", f"{1e3 * seconds[name]:,.0f}", f"{100 * seconds[name] / largest:.0f}%"])
        floor = sum(found["floor_s"]["cpu float32"].values())
        rows.append([recipe, f"the {len(seconds)} largest", f"{1e3 * largest:,.0f}", "100%"])
        rows.append([recipe, "the floor of the whole step", f"{1e3 * floor:,.0f}", ""])
        if "step_s" in found:
            rows.append([recipe, "the whole step, not profiled", f"{1e3 * found['step_s']:,.0f}", ""])
    return table(["recipe", "operation", "ms a step", "share"], rows, numbers=range(2, 4))


def step_table() -> str:
    """A training step beside the textbook's, for every recipe and machine that it was measured for."""
    tables = []
    for file, found in results_of("bench_train_step"):
        device, rows = found["about"]["device"], []
        baselines = {"times faster": "textbook"}
        if "textbook, bfloat16 autocast" in found["step"]:
            baselines["than in bfloat16"] = "textbook, bfloat16 autocast"
        for name, seconds in found["step"].items():
            faster, memory = found["times_faster"].get(name, {}), found["share_of_memory"].get(name)
            rows.append(
                [
                    name,
                    *_spread(seconds, _seconds),
                    f"{found['peak_bytes'][name] / 2**20:,.0f}",
                    *(f"{faster[other]:.2f}" if other in faster else "" for other in baselines.values()),
                    "" if memory is None else f"{100 * memory:.0f}%",
                ]
            )
        note = f", {device['note']}" if "note" in device else ""
        if "page_fault_s" in device:
            note = f", page faults of {1e6 * device['page_fault_s']:.1f} us"
        head = ["step", "s", "20% to 80%", "peak MiB", *baselines, "of the memory"]
        title = f"`{found['recipe']}`, {device['gpu'] or device['cpu']}{note}"
        tables.append(_titled(title, file, table(head, rows, numbers=range(1, len(head)))))
    return "\n".join(tables)


def filtered_step_table() -> str:
    """A training step of a trained mixture with the posterior filter, beside the textbook's from the same weights."""
    tables = []
    for file, found in results_of("bench_filtered_step"):
        rows = []
        for name, seconds in found["step"].items():
            faster = found["times_faster"].get(name)
            rows.append([name, *_spread(seconds, _seconds), "" if faster is None else f"{faster:.2f}"])
        title = (
            f"`{found['recipe']}`, {found['about']['device']['cpu']}, after {found['updates_before']:,} updates: "
            f"{100 * found['posteriors']['share_below']['1e-3']:.0f}% of the posteriors are below 0.001"
        )
        tables.append(
            _titled(title, file, table(["step", "s", "20% to 80%", "times faster"], rows, numbers=range(1, 4)))
        )
    return "\n".join(tables)


def dynamic_evaluation_table() -> str:
    """A segment of dynamic evaluation beside the textbook's, on every machine that it was measured on."""
    tables = []
    for file, found in results_of("bench_dynamic_evaluation"):
        device, rows = found["about"]["device"], []
        for name, seconds in found["segment"].items():
            faster = found["times_faster"].get(name)
            rows.append(
                [
                    name,
                    *_spread(seconds, lambda value: f"{1e3 * value:.1f}"),
                    f"{found['peak_bytes'][name] / 2**20:,.0f}",
                    "" if faster is None else f"{faster:.1f}",
                ]
            )
        where = device["gpu"] or f"{device['cpu']}, {device['threads']} thread{'s' * (device['threads'] > 1)}"
        head = ["loop", "ms a segment", "20% to 80%", "peak MiB", "times the time of ours"]
        tables.append(_titled(where, file, table(head, rows, numbers=range(1, 5))))
    return "\n".join(tables)


def waiting_table() -> str:
    """Milliseconds by the way that threads wait, beside none and more busy programs, on every machine."""
    rows, ways = [], []
    for _, found in results_of("bench_waiting_threads"):
        beside = found["beside_busy_programs"]
        ways = list(next(iter(beside["0"].values())))
        rows += [
            [
                found["about"]["device"]["cpu"],
                what,
                count,
                *(f"{1e3 * measured[what][way]['median_s']:.0f}" for way in ways),
            ]
            for what in beside["0"]
            for count, measured in beside.items()
        ]
    return table(["device", "ms of", "busy programs", *ways], rows, numbers=range(2, 3 + len(ways)))


def _spread(times: dict[str, float], shown: Callable[[float], str]) -> tuple[str, str]:
    """The median of a measurement, and its 20th and 80th percentile."""
    return shown(times["median_s"]), f"{shown(times['p20_s'])} to {shown(times['p80_s'])}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _titled(title: str, file: str, measured: str) -> str:
    """A table of its own for what one file holds."""
    return f"**{title}** ([{file}](../benchmarks/results/{file}))\n\n{measured}"
