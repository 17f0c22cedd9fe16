"""Tables of what was run, from ``benchmarks/results`` and the recipes; what has not been run says how it is."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.generate.markdown import table
from highrank.data.catalog import CATALOG
from highrank.report.paper import PAPER
from highrank.runs import find_recipe, parameter_count, read_config, recipe_names

__all__ = ["RESULTS", "paper_table", "read_results", "recipe_table", "run_list", "tutorial_table"]

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
STAGES = ("train", "finetune", "dynamic")
# Which recipe is which of the paper's models: the control "its own settings" has none.
RECIPE_OF = {
    "mixture of softmaxes, K=15": "{}",
    "mixture of contexts, same size": "{}-moc",
    "one softmax, the mixture's settings": "{}-softmax",
}


def read_results() -> dict[str, dict[str, Any]]:
    """The content of every file, by its name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def paper_table(corpus: str) -> str:
    """The paper's models on a corpus, our run of each beside it, and our other runs on the same text."""
    ours = {recipe: (name, found) for name, found in read_results().items() for recipe in _whole_run(found)}
    rows, shown = [], set()
    for model in PAPER[corpus]:
        figures = [_pair(model.perplexity.get(stage)) for stage in STAGES]
        rows.append([f"{model.name}: the paper", f"{model.parameters_millions}M", *figures, "arXiv 1711.03953"])
        if model.name in RECIPE_OF:
            recipe = RECIPE_OF[model.name].format(corpus)
            shown.add(recipe)
            rows.append(_our_row(recipe, ours.get(recipe)))
    for recipe, found in ours.items():
        if recipe not in shown and _config(recipe).data.corpus == corpus:
            rows.append(_our_row(recipe, found))
    head = ["perplexity, valid / test", "parameters", "trained", "fine-tuned", "dynamic evaluation", "source"]
    return table(head, rows, numbers=range(1, 5))


def run_list() -> str:
    """What was run, where, when, and the file that keeps it."""
    rows = []
    for name, found in read_results().items():
        about = found["about"]
        if "what" not in about:
            continue  # a benchmark: the page of benchmarks has it
        device = about["device"]
        where = device if isinstance(device, str) else _device(device)
        rows.append(
            [
                about["what"],
                f"`{about['command']}`",
                f"{where}; PyTorch {about['versions']['torch']}",
                f"commit {about['commit']}, {about['date']}",
                f"[{name}](../benchmarks/results/{name})",
            ]
        )
    return table(["what", "command", "machine", "code", "log"], rows)


def tutorial_table() -> str:
    """What came of the tutorial's commands."""
    rows = []
    for name, found in read_results()["tutorial_run.json"]["results"].items():
        rank = found["rank"]
        rows.append(
            [
                name,
                f"{found['valid_perplexity']:.1f}",
                f"{found['test_perplexity']:.1f}",
                f"{rank['context_features']}",
                f"{rank['bound']:,}" if rank["bound"] else "none",
                f"{rank['numerical_rank']:,} of {rank['contexts']:,}",
                *(f"{at['rank']:,}" for at in rank["ranks"] if at["relative_threshold"] in (1e-3, 1e-6)),
                f"{rank['mean_kl_nats']:.2f}",
            ]
        )
    head = ["run", "valid", "test", "D", "bound", "rank", "above 1e-3", "above 1e-6", "mean KL, nats"]
    return table(head, rows, numbers=range(1, len(head)))


def recipe_table() -> str:
    """Every recipe with its promise, as its file states it."""
    rows = []
    for name in recipe_names():
        promise = tomllib.loads(find_recipe(name).read_text(encoding="utf-8"))["promise"]
        config = _config(name)
        rows.append(
            [
                f"[`{name}`](../recipes/{name}.toml)",
                config.data.corpus,
                f"{config.model.head.replace('-', ' ')}"
                + (f", K={config.model.num_components}" if config.model.head != "softmax" else ""),
                promise["perplexity"],
                promise["time"],
            ]
        )
    return table(["recipe", "text", "head", "perplexity", "time"], rows)


def _config(recipe: str):
    return read_config(find_recipe(recipe))


def _whole_run(found: dict[str, Any]) -> Iterator[str]:
    """The recipe of which a file keeps a whole run."""
    if "dynamic" in found.get("results", {}):
        command = found["about"]["command"].replace("make demo", "highrank run kjv-demo")
        if recipe := re.search(r"highrank run (\S+)", command):
            yield recipe[1]


def _our_row(recipe: str, found: tuple[str, dict[str, Any]] | None) -> list[str]:
    config = _config(recipe)
    count = parameter_count(config, CATALOG[config.data.corpus].vocabulary_size)
    if found is None:
        return [f"ours: `{recipe}`", f"{count:,}", "not run", "not run", "not run", f"`highrank run {recipe}`"]
    name, content = found
    figures = [
        _pair((stage["valid"]["perplexity"], stage["test"]["perplexity"]))
        for stage in (content["results"][stage] for stage in STAGES)
    ]
    return [f"ours: `{recipe}`", f"{count:,}", *figures, f"`benchmarks/results/{name}`"]


def _pair(figures: tuple[float, float] | None) -> str:
    return "-" if figures is None else f"{figures[0]:.2f} / {figures[1]:.2f}"


def _device(device: dict[str, Any]) -> str:
    what = device.get("gpu") or device["cpu"]
    threads = f", {device['threads']} threads" if "threads" in device else ""
    note = f"; {device['note']}" if "note" in device else ""
    return f"{what}, {device['cores']} cores{threads}{note}"
