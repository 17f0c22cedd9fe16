"""Tables of what a training step must cost and what it does cost, from ``benchmarks/results/floors.json``."""

import json
from typing import Any

from docs.generate.markdown import table
from docs.generate.results import RESULTS

__all__ = ["floor_table", "time_table"]

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
        whole = sum(seconds.values())
        for name in list(seconds)[:SHOWN_OPERATIONS]:
            rows.append([recipe, f"`{name}`", f"{1e3 * seconds[name]:,.0f}", f"{100 * seconds[name] / whole:.0f}%"])
        floor = sum(found["floor_s"]["cpu float32"].values())
        rows.append([recipe, "all operations", f"{1e3 * whole:,.0f}", "100%"])
        rows.append([recipe, "the floor", f"{1e3 * floor:,.0f}", f"{100 * floor / whole:.0f}%"])
    return table(["recipe", "operation", "ms a step", "share"], rows, numbers=range(2, 4))
