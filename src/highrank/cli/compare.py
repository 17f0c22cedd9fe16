"""``highrank compare RUN RUN...``"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrank.cli.output import add_json_option, print_result
from highrank.cli.runs import INEXACT, MARK
from highrank.errors import UserError, one_line

if TYPE_CHECKING:
    from highrank.runs.comparison import Comparison
    from highrank.runs.listing import DynamicFigures, RunSummary, StageFigures, TemperedFigures
    from highrank.runs.measured import Components, RankFigures

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "compare",
        help="runs side by side: settings that differ, and results",
        description="The settings in which runs differ, and their results side by side. Changes nothing.",
    )
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="+", help="two run folders or more")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.folders) < 2:
        raise UserError(f"compare: expected two run folders or more, got {arguments.folders[0]}", exit_code=2)

    from highrank.runs.comparison import compare

    comparison = compare(arguments.folders)
    if arguments.json:
        print_result(_result(comparison), [], as_json=True)
    else:
        _print(comparison)
    return 0


def _result(comparison: "Comparison") -> dict[str, Any]:
    return {
        "runs": [
            {
                "run": str(run.path),
                "state": run.state,
                "corpus": run.corpus,
                "parameters": run.parameters,
                "stages": {stage.stage: asdict(stage) for stage in run.stages},
                "dynamic": None if run.dynamic is None else asdict(run.dynamic),
            }
            for run in comparison.runs
        ],
        "settings": comparison.settings,
        "rank": [None if found is None else _rank(found) for found in comparison.rank],
        "components": [None if found is None else _components(found) for found in comparison.components],
        "perplexities_comparable": not comparison.obstacles,
        "obstacles": list(comparison.obstacles),
        "notes": list(comparison.notes),
    }


def _rank(found: "RankFigures") -> dict[str, Any]:
    """The headline figures: the spectrum stands in rank.json."""
    names = ("contexts", "numerical_rank", "effective_rank", "bound", "mean_kl_nats")
    return _about(found) | {name: getattr(found, name) for name in names}


def _components(found: "Components") -> dict[str, Any]:
    return _about(found) | {
        "tokens": found.tokens,
        "dead": found.dead,
        "prior_entropy": {"mean_nats": found.prior_entropy.mean_nats},
        "posterior_entropy": {"mean_nats": found.posterior_entropy.mean_nats},
        "gain": {"best_component": {"gain_nats": found.gain.best_component.gain_nats}},
    }


def _about(found: "RankFigures | Components") -> dict[str, Any]:
    return {"stage": found.stage, "split": found.split, "model_sha256": found.model_sha256}


def _print(comparison: "Comparison") -> None:
    from highrank.cli.table import Column, print_table

    names = [one_line(name) for name in _names([run.path for run in comparison.runs])]
    rows = [*_settings_rows(comparison), *_result_rows(comparison.runs), *_measured_rows(comparison)]
    print_table([Column(""), *(Column(name, right=True) for name in names)], rows)
    if any(stage.valid_is_exact is False for run in comparison.runs for stage in run.stages):
        print(INEXACT)
    for obstacle in comparison.obstacles:
        print(f"perplexities cannot be compared: {one_line(obstacle)}")
    for note in comparison.notes:
        print(f"note: {one_line(note)}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, where they tell the runs apart."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _settings_rows(comparison: "Comparison") -> Iterator[list[str]]:
    for name, values in comparison.settings.items():
        yield [name, *(str(value) for value in values)]
    if not comparison.settings:
        yield ["settings", *("the same" for _ in comparison.runs)]


def _result_rows(runs: Sequence["RunSummary"]) -> Iterator[list[str]]:
    from highrank.runs.records import STAGE_TITLES, STAGES

    yield ["state", *(run.state for run in runs)]
    yield ["parameters", *(_count(run.parameters) for run in runs)]
    for name in STAGES:
        title = STAGE_TITLES[name]
        stages = [next((stage for stage in run.stages if stage.stage == name), None) for run in runs]
        if any(stages):
            marks = [MARK * (stage is not None and stage.valid_is_exact is False) for stage in stages]
            yield [
                f"{title}: valid / test",
                *(m + _perplexities(stage) for m, stage in zip(marks, stages, strict=True)),
            ]
            tempered = [None if stage is None else stage.tempered for stage in stages]
            if any(tempered):
                yield [f"{title}, tempered: valid / test", *(_perplexities(each) for each in tempered)]
                yield [f"{title}, tempered: temperature", *("-" if each is None else each.how for each in tempered)]
            yield [f"{title}: updates", *("-" if stage is None else _count(stage.updates) for stage in stages)]
            yield [f"{title}: epochs", *(_epochs(stage) for stage in stages)]
            yield [f"{title}: time", *(_time(stage) for stage in stages)]
    dynamic = [run.dynamic for run in runs]
    if any(dynamic):
        yield ["dynamic: valid / test", *(_perplexities(each) for each in dynamic)]
        yield [
            "dynamic: model",
            *("-" if each is None else STAGE_TITLES.get(each.stage, each.stage) for each in dynamic),
        ]
        yield ["dynamic: lr, lamb", *(_rates(each) for each in dynamic)]
        yield ["dynamic: time", *(_time(each) for each in dynamic)]


def _measured_rows(comparison: "Comparison") -> Iterator[list[str]]:
    ranks: dict[str, Callable[[RankFigures], str]] = {
        "rank": lambda found: f"{found.numerical_rank:,}",
        "rank: bound": lambda found: _count(found.bound),
        "rank: contexts": lambda found: f"{found.contexts:,} of {found.split}",
        "rank: effective": lambda found: f"{found.effective_rank:,.1f}",
    }
    components: dict[str, Callable[[Components], str]] = {
        "components: dead": lambda found: str(len(found.dead)),
        "components: prior entropy": lambda found: f"{found.prior_entropy.mean_nats:.3f} nats",
        "components: posterior entropy": lambda found: f"{found.posterior_entropy.mean_nats:.3f} nats",
        "components: gain over the best": lambda found: f"{found.gain.best_component.gain_nats:.3f} nats",
    }
    if any(comparison.rank):
        for title, figure in ranks.items():
            yield [title, *("-" if each is None else figure(each) for each in comparison.rank)]
    if any(comparison.components):
        for title, said in components.items():
            yield [title, *("-" if each is None else said(each) for each in comparison.components)]


def _perplexities(figures: "StageFigures | TemperedFigures | DynamicFigures | None") -> str:
    if figures is None:
        return "-"
    both = (figures.valid_perplexity, figures.test_perplexity)
    return " / ".join("-" if value is None else f"{value:.2f}" for value in both)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _epochs(stage: "StageFigures | None") -> str:
    if stage is None or stage.epoch is None:
        return "-"
    return f"{stage.epoch}, done" if stage.finished else f"{stage.epoch} of {stage.epochs}"


def _time(figures: "StageFigures | DynamicFigures | None") -> str:
    return "-" if figures is None or figures.elapsed_s is None else f"{figures.elapsed_s:,.0f} s"


def _rates(dynamic: "DynamicFigures | None") -> str:
    if dynamic is None:
        return "-"
    return ", ".join(f"{dynamic.settings[name]:g}" if name in dynamic.settings else "-" for name in ("lr", "lamb"))
