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
    exact, rounded, _ = (found["times_faster"].get(name, {}).get("textbook") for name in names)
    half = "in bfloat16, which is slower there" if short > ours else "with `train.precision=bfloat16`"
    return [
        f"{exact:.1f} times faster in float32 ({ours:.2f} against {textbook:.2f} s), {rounded:.1f} times {half}; "
        f"{100 * found['share_of_memory']['highrank']:.0f}% of the memory"
    ]


def spectrum(found: dict[str, Any]) -> list[str]:
    heads = [found["results"][name]["rank"] for name in ("one softmax", "mixture of contexts", "mixture of softmaxes")]
    above = {
        share: [at["rank"] for head in heads for at in head["ranks"] if at["relative_threshold"] == share]
        for share in (1e-3, 1e-4)
    }
    return [
        *(f"have rank {head['numerical_rank']:,}" for head in heads),
        "above a thousandth of the largest singular value stand {}, {} and {}".format(*above[1e-3]),
        "above a ten-thousandth {}, {} and {}".format(*above[1e-4]),
    ]


def faults(found: dict[str, Any]) -> list[str]:
    killed, cut, totals = found["faults"]["killed"], found["faults"]["cut short"], found["totals"]
    assert totals["bits_different"] == 0
    return [
        f"{killed['kills']} kills, half of them aimed at a save ({killed['kills_during_a_save']} fell into one)",
        f"{cut['cuts']} files cut short",
        f"{cut['refused']} of the cuts are refused",
        f"{totals['runs_compared']} runs",
        f"{totals['bits_compared'] / totals['runs_compared'] / 1e6:.1f} million bits each: none differs",
    ]


def workers(found: dict[str, Any]) -> list[str]:
    assert all(each["largest_relative_difference"] == 0 for each in found["float32"].values())
    largest = max(each["largest_relative_difference"] for each in found["float64"].values())
    updates = found["float64"]["3 workers against 1"]["updates"]
    return [f"{updates} updates", f"within {largest:.0e} of the largest weight"]


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


def one_softmax(_: dict[str, Any]) -> list[str]:
    """Beside other losses, on an EPYC and a Xeon."""
    found = [RESULTS[f"bench_loss_speed.cpu{processor}.json"]["results"] for processor in ("", ".xeon")]

    def times(other: str, dtype: str) -> list[float]:
        each = [results[f"one-softmax.{dtype}"]["times"] for results in found]
        return [of[other]["median_s"] / of["highrank chunked"]["median_s"] for of in each]

    plain, half = (times("cross_entropy(linear)", dtype) for dtype in ("float32", "bfloat16"))
    fused = [*times("F.linear_cross_entropy", "float32"), *times("F.linear_cross_entropy", "bfloat16")]
    return [
        f"takes {plain[0]:.2f} and {plain[1]:.2f} times as long in float32",
        f"in float32 and {half[0]:.2f} and {half[1]:.2f} times in bfloat16",
        f"`F.linear_cross_entropy` takes {min(fused):.1f} to {max(fused):.1f} times as long",
    ]


def floors(found: dict[str, Any]) -> list[str]:
    recipes = (found["recipes"][name] for name in ("penn", "wikitext-2"))
    over = [recipe["step_s"] / sum(recipe["floor_s"]["cpu float32"].values()) for recipe in recipes]
    return [
        f"{found['cpu']['float32'] / 1e9:.0f} GFLOP/s and {found['cpu']['bytes_per_s'] / 1e9:.0f} GB/s",
        "a step took {:.2f} (Penn Treebank) and {:.2f} times (WikiText-2) the floor".format(*over),
    ]


def cache(found: dict[str, Any]) -> list[str]:
    test = found["results"]["mos-k3-seed1"]["test"]
    return [f"test perplexity falls from {test['without']['perplexity']:.2f} to {test['with_cache']['perplexity']:.2f}"]


def longer(found: dict[str, Any]) -> list[str]:
    """Three softmaxes and one, by seed 1, the only one that the sentences speak of."""
    rows = {row["variant"]: row["results"] for row in found["rows"] if row["seed"] == 1}
    trained, dynamic = (
        [rows[name][stage]["valid"]["perplexity"] for name in ("mos-k3", "softmax-time")]
        for stage in ("train", "dynamic")
    )
    return [
        f"by {trained[1] - trained[0]:.1f} points of validation perplexity, {trained[0]:.1f} and {trained[1]:.1f} (one",
        f"by {dynamic[1] - dynamic[0]:.0f} points after dynamic evaluation ({dynamic[0]:.1f} and {dynamic[1]:.1f})",
    ]


STATED: dict[tuple[str, str], Callable[[dict[str, Any]], list[str]]] = {
    ("README.md", "bench_train_step.penn.cpu.json"): step,
    ("README.md", "bench_train_step.penn.cpu.xeon.json"): step,
    ("README.md", "faults.json"): faults,
    ("README.md", "workers_agree.json"): workers,
    ("README.md", "fuzz_readers.json"): fuzz,
    ("README.md", "penn_small_controls.json"): spectrum,
    ("docs/index.md", "penn_small_controls.json"): spectrum,
    ("docs/head.md", "bench_loss_speed.cpu.json"): one_softmax,
    ("docs/speed.md", "floors.json"): floors,
    ("docs/studies.md", "cache_eval.json"): cache,
    ("docs/studies.md", "study_longer.json"): longer,
    ("docs/tutorial.md", "tutorial_run.json"): learning_rates,
}


@pytest.mark.parametrize(("page", "file"), list(STATED), ids=lambda name: name)
def test_figures_in_sentences(page: str, file: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert file in text
    missing = [words for words in STATED[page, file](RESULTS[file]) if words not in text]
    assert missing == []


def test_a_step_in_other_hours() -> None:
    hours = [f"bench_train_step.penn.cpu{hour}.json" for hour in ("", ".large-pages", ".run-1", ".slow-page-faults")]
    ratios = [f"{RESULTS[file]['times_faster']['highrank']['textbook']:.1f}" for file in hours[1:]]
    ours, textbook = ([RESULTS[file]["step"][name]["median_s"] for file in hours] for name in ("highrank", "textbook"))
    both = RESULTS["bench_train_step.penn.cpu.xeon.json"]["times_faster"]["highrank"]["textbook, our environment"]
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "in other hours ours was {}, {} and {} times faster".format(*ratios) in text
    assert f"our step took {min(ours):.1f} to {max(ours):.1f} s and the textbook's" in text
    assert f"the textbook's {min(textbook):.1f} to {max(textbook):.1f}:" in text
    assert f"it was {both:.1f} times faster" in text
