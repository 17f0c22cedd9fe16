"""The figures that sentences of the README and the pages state are those of the files that they name."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from docs.generate.results import read_results
from tests.docs.snippets import ROOT

RESULTS = read_results()
MIB = 2**20


def step(found: dict[str, Any]) -> list[str]:
    names = ("highrank", "highrank, bfloat16", "textbook")
    ours, short, textbook = (found["step"][name]["median_s"] for name in names)
    memory, _, theirs = (found["peak_bytes"][name] / MIB for name in names)
    exact, rounded, _ = (found["times_faster"].get(name, {}).get("textbook") for name in names)
    return [
        f"{exact:.1f} times faster, {rounded:.1f} times with `train.precision=bfloat16`",
        f"{100 * found['share_of_memory']['highrank']:.0f}% of the memory",
        f"{ours:.2f} and {short:.2f} s against {textbook:.2f} s a step, in turn, "
        f"peak {memory:,.0f} against {theirs:,.0f} MiB",
    ]


def faults(found: dict[str, Any]) -> list[str]:
    killed, cut, totals = found["faults"]["killed"], found["faults"]["cut short"], found["totals"]
    return [
        f"{killed['kills']} kills, half of them aimed at a save ({killed['kills_during_a_save']} fell into one)",
        f"{cut['cuts']} files cut short",
        f"but for {cut['refused']} of the cuts",
        f"{totals['bits_different']} of {totals['bits_compared']:,} bits differ",
    ]


def workers(found: dict[str, Any]) -> list[str]:
    assert all(each["largest_relative_difference"] == 0 for each in found["float32"].values())
    largest = max(each["largest_relative_difference"] for each in found["float64"].values())
    updates = found["float64"]["3 workers against 1"]["updates"]
    return [f"{updates} updates", f"weights differ by {largest:.0e} of the largest at most"]


def fuzz(found: dict[str, Any]) -> list[str]:
    assert found["crashes"] == 0
    assert "+ 4 x" in found["bound"]
    taken = sum(reader.get("other", 0) for reader in found["readers"].values())
    return [
        f"{found['inputs']:,} damaged or malicious inputs",
        "no crash",
        f"{taken} were read as other content",
        f"at most {int(found['bound'].split()[0]) / MIB:.0f} MiB and four times",
    ]


def learning_rates(found: dict[str, Any]) -> list[str]:
    figures = [f"{value:.0f}" for value in found["softmax_by_lr_valid_perplexity"].values()]
    updates = {result["updates"] for result in found["results"].values()}
    return [f"{', '.join(figures[:-1])} and {figures[-1]}", *(f"{count:,} updates" for count in updates)]


STATED: dict[tuple[str, str], Callable[[dict[str, Any]], list[str]]] = {
    ("README.md", "bench_train_step.penn.cpu.json"): step,
    ("README.md", "bench_train_step.penn.cpu.xeon.json"): step,
    ("README.md", "faults.json"): faults,
    ("README.md", "workers_agree.json"): workers,
    ("README.md", "fuzz_readers.json"): fuzz,
    ("docs/tutorial.md", "tutorial_run.json"): learning_rates,
}


@pytest.mark.parametrize(("page", "file"), list(STATED), ids=lambda name: name)
def test_figures_in_sentences(page: str, file: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert file in text
    missing = [words for words in STATED[page, file](RESULTS[file]) if words not in text]
    assert missing == []
