"""Tables of what was run, from ``benchmarks/results`` and the recipes; what has not been run says how it is."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docs.generate.markdown import table
from highrank.data.catalog import CATALOG
from highrank.evaluate.paper import PAPER, PAPER_RANKS
from highrank.runs import Config, find_recipe, parameter_count, read_config, recipe_names

__all__ = [
    "RESULTS",
    "paper_table",
    "rank_table",
    "read_results",
    "recipe_table",
    "results_of",
    "run_list",
    "tutorial_table",
]

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
STAGES = ("train", "finetune", "dynamic")
# Which recipe is which of the paper's models.
RECIPE_OF = {
    "mixture of softmaxes, K=15": "{}",
    "mixture of contexts, same size": "{}-moc",
    "one softmax, its own settings": "{}-awd-lstm",
    "one softmax, the mixture's settings": "{}-softmax",
}


def read_results() -> dict[str, dict[str, Any]]:
    """The content of every file, by its name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def results_of(benchmark: str) -> list[tuple[str, dict[str, Any]]]:
    """The files of a benchmark, by recipe and machine, with their content."""
    return [(file, found) for file, found in read_results().items() if file.startswith(f"{benchmark}.")]


def paper_table(corpus: str) -> str:
    """The paper's models on a corpus, our run of each beside it, and our other runs on the same text."""
    ours = [run for run in _runs() if run.config.data.corpus == corpus]
    rows = []
    for model in PAPER[corpus]:
        figures = [_pair(model.perplexity.get(stage)) for stage in STAGES]
        rows.append([f"{model.name}: the paper", f"{model.parameters_millions}M", *figures, "arXiv 1711.03953"])
        if model.name in RECIPE_OF:
            recipe = RECIPE_OF[model.name].format(corpus)
            of_recipe = [run for run in ours if run.recipe == recipe]
            rows += [_our_row(run) for run in of_recipe or [Run(recipe, [], "", {})]]
            ours = [run for run in ours if run not in of_recipe]
    rows += [_our_row(run) for run in ours]
    head = ["perplexity, valid / test", "parameters", "trained", "fine-tuned", "dynamic evaluation", "source"]
    return table(head, rows, numbers=range(1, 5))


def rank_table() -> str:
    """The paper's ranks, and every one that a file of results has."""
    rows = [
        [
            f"the paper: {_head(at)}",
            str(at["context_features"]),
            f"{at['vocabulary']:,}",
            "",
            f"{at['rank']:,}",
            *[""] * 5,
        ]
        for at in PAPER_RANKS
    ]
    for file, found in read_results().items():
        for result in found.get("results", {}).values():
            if not (isinstance(result, dict) and "numerical_rank" in result.get("rank", {})):
                continue
            at = result["rank"]
            rows.append(
                [
                    f"ours: {_head(at)}",
                    str(at["context_features"]),
                    f"{at['vocabulary']:,}",
                    f"{at['contexts']:,}",
                    f"{at['numerical_rank']:,}",
                    f"{at['bound']:,}" if at["bound"] else "none",
                    *_counts_above(at, 1e-3, 1e-4),
                    f"{at['mean_kl_nats']:.2f}",
                    f"[{file}](../benchmarks/results/{file})",
                ]
            )
    head = ["log-probability matrix", "D", "words", "contexts", "rank", "bound", "above 1e-3", "above 1e-4"]
    return table([*head, "mean KL, nats", "source"], rows, numbers=range(1, 9))


def run_list() -> str:
    """What was run, where, when, and the file that keeps it."""
    items = []
    for name, found in read_results().items():
        about = found["about"]
        if "what" not in about:
            continue  # a benchmark: the page of benchmarks has it
        device = about["device"]
        where = device if isinstance(device, str) else _device(device)
        items.append(
            f"- **{about['what'][0].upper()}{about['what'][1:]}.** {where}; PyTorch {about['versions']['torch']}; "
            f"commit {about['commit']}, {about['date']}; [{name}](../benchmarks/results/{name}).\n"
            f"  `{about['command']}`\n"
        )
    return "".join(items)


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
                *_counts_above(rank, 1e-3, 1e-6),
                f"{rank['mean_kl_nats']:.2f}",
            ]
        )
    head = ["run", "valid", "test", "D", "bound", "rank", "above 1e-3", "above 1e-6", "mean KL, nats"]
    return table(head, rows, numbers=range(1, len(head)))


def recipe_table() -> str:
    """Every recipe with its promise, as its file states it."""
    rows = []
    for name in recipe_names():
        promise = _promise(name)
        config = read_config(find_recipe(name))
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


def _promise(recipe: str) -> dict[str, str]:
    return tomllib.loads(find_recipe(recipe).read_text(encoding="utf-8"))["promise"]


class Run(NamedTuple):
    """A run of a recipe that a file of results keeps; one that was not run has no file."""

    recipe: str
    settings: list[str]  # what --set changed
    file: str
    results: dict[str, Any]

    @property
    def config(self) -> Config:
        return read_config(find_recipe(self.recipe), overrides=self.settings)


def _runs() -> list[Run]:
    """A file with the results of stages is a run, of the recipe that its command names."""
    runs = []
    for name, found in read_results().items():
        command = found["about"]["command"].replace("make demo", "highrank run kjv-demo")
        recipe = re.search(r"highrank (?:run|train) (\S+)", command)
        if recipe and "train" in found.get("results", {}):
            runs.append(Run(recipe[1], re.findall(r"--set (\S+)", command), name, found["results"]))
    return runs


def _our_row(run: Run) -> list[str]:
    count = parameter_count(run.config, CATALOG[run.config.data.corpus].vocabulary_size)
    what = ", ".join(f"`{word}`" for word in (run.recipe, *run.settings))
    figures = [_pair(_perplexities(run.results[stage])) if stage in run.results else "not run" for stage in STAGES]
    source = f"`benchmarks/results/{run.file}`" if run.file else f"`{_promise(run.recipe)['command']}`"
    return [f"ours: {what}", f"{count:,}", *figures, source]


def _perplexities(stage: dict[str, Any]) -> tuple[float, ...]:
    return tuple(stage[split]["perplexity"] for split in ("valid", "test"))


def _counts_above(rank: Mapping[str, Any], *thresholds: float) -> list[str]:
    return [f"{at['rank']:,}" for at in rank["ranks"] if at["relative_threshold"] in thresholds]


def _head(at: Mapping[str, Any]) -> str:
    words = at["head"].replace("-", " ")
    return words if at["head"] == "softmax" else f"{words}, K={at['num_components']}"


def _pair(figures: Sequence[float] | None) -> str:
    return "-" if figures is None else f"{figures[0]:.2f} / {figures[1]:.2f}"


def _device(device: dict[str, Any]) -> str:
    what = device.get("gpu") or device["cpu"]
    threads = f", {device['threads']} threads" if "threads" in device else ""
    note = f"; {device['note']}" if "note" in device else ""
    return f"{what}, {device['cores']} cores{threads}{note}"
