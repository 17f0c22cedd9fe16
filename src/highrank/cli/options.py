"""Options that several commands share, and what they stand for."""

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from highrank.runs.recipes import recipe_names

__all__ = [
    "add_data_option",
    "add_device_option",
    "add_recipe_options",
    "add_run_argument",
    "add_set_option",
    "add_split_option",
    "add_stage_option",
    "add_training_options",
    "add_workers_options",
    "not_negative",
    "not_negative_int",
    "positive_int",
]


def positive_int(text: str) -> int:
    return int(_at_least(1, text, int))


def not_negative_int(text: str) -> int:
    return int(_at_least(0, text, int))


def not_negative(text: str) -> float:
    return _at_least(0, text, float)


def _at_least(least: int, text: str, read: Callable[[str], float]) -> float:
    with contextlib.suppress(ValueError):  # argparse would say the name of a function of ours
        if least <= (value := read(text)) < math.inf:
            return value
    kind = "whole number" if read is int else "number"
    raise argparse.ArgumentTypeError(f"expected a {kind} of at least {least}, got {text}")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run folder, made by highrank train or import")


def add_data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="a folder with train.txt, valid.txt and test.txt")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")


def add_workers_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes on this machine that share the work, a GPU each where there are GPUs (default: %(default)s); "
        "across machines use torchrun",
    )
    parser.add_argument(
        "--worker-timeout",
        type=positive_int,
        default=300,
        metavar="S",
        help="seconds that a worker waits for another one before it counts as lost (default: %(default)s)",
    )


def add_split_option(parser: "argparse.ArgumentParser | argparse._MutuallyExclusiveGroup") -> None:
    parser.add_argument("--split", choices=("train", "valid", "test"), default="test", help="(default: %(default)s)")


def add_stage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=("train", "finetune"), help="whose model (default: of the last stage)")


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"a recipe's name ({', '.join(recipe_names())}), or the path of a .toml file"
    )
    parser.add_argument("--out", metavar="RUN", type=Path, help="the run folder (default: runs/RECIPE)")
    add_set_option(parser, "change a setting of the recipe")
    parser.set_defaults(
        less_memory="begin a run with a smaller model or smaller passes "
        "(--set train.micro_batch=...; train --dry-run says what they need)"
    )


def add_set_option(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help=f"{purpose}; may be given many times",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.set_defaults(after_loss="the last checkpoint stands, go on with --resume")
    parser.add_argument(
        "--checkpoint-minutes",
        type=not_negative,
        default=10.0,
        metavar="M",
        help="save at least so often within an epoch (default: %(default)s); each epoch is saved anyway",
    )
