"""``highrank runs [DIR]``"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrank.cli.output import add_json_option, notice, print_result
from highrank.errors import one_line

if TYPE_CHECKING:
    from highrank.runs.listing import RunSummary

__all__ = ["INEXACT", "MARK", "add_parser", "run"]

MARK = "~"
INEXACT = f"{MARK}: of the validation in training; highrank evaluate RUN --split valid has the exact one"

HEADS = {"mixture-of-softmaxes": "MoS", "mixture-of-contexts": "MoC"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "runs",
        help="the runs in a folder, and how far each has come",
        description="A table of the run folders in DIR, three levels down. Stage, update and perplexities are those of "
        "the last stage that was begun; perplexities are of its best model so far, and with a ~ as they were in "
        "training, where each word has less text before it. Changes nothing.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="(default: runs)")
    parser.add_argument(
        "--sort",
        choices=tuple(ORDERS),
        default="age",
        help="perplexity: of validation, best first; age: last changed first; stage and update: the earliest first "
        "(default: %(default)s)",
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.runs.listing import RunSummary, find_runs, summarise

    found = [summarise(path) for path in find_runs(arguments.folder)]
    summaries = [each for each in found if isinstance(each, RunSummary)]
    damaged = [each for each in found if not isinstance(each, RunSummary)]
    summaries = _in_order(summaries, ORDERS[arguments.sort], reverse=arguments.reverse)
    if arguments.json:
        rows: list[dict[str, Any]] = [_row(summary, arguments.folder) for summary in summaries]
        rows += [
            {"run": str(each.path), "name": _name(each.path, arguments.folder), "state": "damaged"}
            | {"problem": each.problem}
            for each in damaged
        ]
        print_result({"runs": rows}, [], as_json=True)
        return 0
    if not found:
        notice(f"{arguments.folder}: no run folders in it, nor in the folders below")
    if summaries:
        _print_table([_row(summary, arguments.folder) for summary in summaries])
    for each in damaged:
        name = one_line(_name(each.path, arguments.folder))
        print(f"{name}: damaged: {each.problem}; see highrank doctor {one_line(str(each.path))}")
    return 0


def _stage_order(summary: "RunSummary") -> tuple[int, int]:
    return ("train", "finetune").index(summary.last.stage), summary.last.updates or 0


ORDERS: dict[str, Callable[["RunSummary"], Any]] = {
    "perplexity": lambda summary: summary.last.valid_perplexity,
    "age": lambda summary: -summary.changed,
    "name": lambda summary: str(summary.path),
    "stage": _stage_order,
    "update": lambda summary: summary.last.updates,
}


def _in_order(
    summaries: Sequence["RunSummary"], key: Callable[["RunSummary"], Any], *, reverse: bool
) -> list["RunSummary"]:
    """Those that have no such figure are last, either way."""
    known = sorted((each for each in summaries if key(each) is not None), key=key, reverse=reverse)
    return known + [each for each in summaries if key(each) is None]


def _name(run: Path, folder: Path) -> str:
    return run.resolve().name if run == folder else str(run.relative_to(folder))


def _row(summary: "RunSummary", folder: Path) -> dict[str, Any]:
    last, dynamic, model = summary.last, summary.last_dynamic, summary.config.model
    return {
        "run": str(summary.path),
        "name": _name(summary.path, folder),
        "state": summary.state,
        "stage": last.stage,
        "updates": last.updates,
        "epoch": last.epoch,
        "epochs": last.epochs,
        "valid_perplexity": last.valid_perplexity,
        "valid_is_exact": last.valid_is_exact,
        "test_perplexity": last.test_perplexity,
        "dynamic_valid_perplexity": None if dynamic is None else dynamic.valid_perplexity,
        "dynamic_test_perplexity": None if dynamic is None else dynamic.test_perplexity,
        "age_s": round(time.time() - summary.changed, 1),
        "head": model.head,
        "num_components": model.components,
        "parameters": summary.parameters,
        "corpus": summary.corpus,
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from highrank.cli.table import Column, print_table

    columns = (
        Column("name"),
        Column("state", spare=2),
        Column("stage", spare=4),
        Column("update", right=True, spare=5),
        Column("epoch", right=True, spare=6),
        Column("valid", right=True),
        Column("test", right=True, spare=1),
        Column("dynamic", right=True, spare=7),
        Column("age", right=True, spare=3),
        Column("head", spare=8),
        Column("parameters", right=True, spare=9),
        Column("corpus", spare=10),
    )
    print_table(columns, [_cells(row) for row in rows])
    if sys.stdout.isatty() and any(row["valid_is_exact"] is False for row in rows):
        print(INEXACT)


def _cells(row: dict[str, Any]) -> list[str]:
    dynamic = [row["dynamic_valid_perplexity"], row["dynamic_test_perplexity"]]
    return [
        one_line(row["name"]),
        row["state"],
        row["stage"],
        "-" if row["updates"] is None else f"{row['updates']:,}",
        "-" if row["epoch"] is None else f"{row['epoch']}/{row['epochs']}",
        MARK * (row["valid_is_exact"] is False) + _perplexity(row["valid_perplexity"]),
        _perplexity(row["test_perplexity"]),
        "-" if dynamic == [None, None] else " / ".join(map(_perplexity, dynamic)),
        _age(row["age_s"]),
        _head_name(row["head"], row["num_components"]),
        "-" if row["parameters"] is None else f"{row['parameters']:,}",
        one_line(row["corpus"]),
    ]


def _head_name(head: str, num_components: int) -> str:
    return f"{HEADS[head]} {num_components}" if head in HEADS else head


def _perplexity(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
