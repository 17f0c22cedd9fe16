"""``highrank evaluate RUN``"""

import argparse
from typing import Any, Literal

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_run_argument,
    add_split_option,
    add_stage_option,
    add_workers_options,
    positive_int,
)
from highrank.cli.output import add_json_option, computed, print_result
from highrank.errors import UserError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="exact perplexity of a run",
        description="Mean loss over every predicted token, with the whole text before it as context.",
    )
    add_run_argument(parser)
    add_split_option(parser)
    add_stage_option(parser)
    add_data_option(parser)
    parser.add_argument(
        "--temperature",
        type=temperature,
        metavar="T",
        help="divide the log-probabilities of the mixture by T and normalise them again; tune: by the T that is best "
        "on the validation text, for the other splits; recorded apart",
    )
    counting = parser.add_mutually_exclusive_group()
    counting.add_argument(
        "--batch",
        type=positive_int,
        default=1,
        help="columns at once; more than 1 is faster, cuts context and drops the remainder, and is not recorded "
        "(default: %(default)s)",
    )
    counting.add_argument(
        "--paper", action="store_true", help="the original's batches and its way of counting, which is a little low"
    )
    add_device_option(parser)
    add_workers_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def temperature(text: str) -> float | Literal["tune"]:
    if text == "tune":
        return "tune"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or tune, got {text}") from None


def run(arguments: argparse.Namespace) -> int:
    if arguments.paper and arguments.temperature is not None:
        raise UserError("--temperature: the paper's code has none; leave out --paper", exit_code=2)

    from highrank.cli.stage import machine
    from highrank.evaluate import evaluate_run, evaluate_run_at
    from highrank.runs import RunFolder
    from highrank.train import corpus_of

    with machine(arguments) as where:
        run_folder = where.workers.first(lambda: RunFolder.open(arguments.folder))
        corpus = corpus_of(run_folder, arguments.data, display=where.display)
        text = (run_folder, corpus, arguments.split)
        how: dict[str, Any] = {
            "stage": arguments.stage,
            "batch": arguments.batch,
            "device": where.device,
            "display": where.display,
            "workers": where.workers,
        }
        if arguments.temperature is None:
            result, unrecorded = computed(lambda: evaluate_run(*text, paper=arguments.paper, **how))
        else:
            result, unrecorded = computed(lambda: evaluate_run_at(*text, arguments.temperature, **how))
    if not where.workers.is_first:
        return 0
    print_result(result, [_line(result)], as_json=arguments.json, unrecorded=unrecorded)
    return 0


def _line(result: dict[str, Any]) -> str:
    at = " (counted as in the paper's code)" if result["counted"] == "paper" else ""
    if "temperature" in result:
        tuned = "" if result["tuned_on"] is None else f", tuned on {result['tuned_on']}"
        at = f" (temperature {result['temperature']:g}{tuned}; at 1: {result['untempered']['perplexity']:.2f})"
    return (
        f"{result['stage']}, {result['split']}: perplexity {result['perplexity']:.2f}, "
        f"{result['loss_nats']:.4f} nats over {result['tokens']:,} tokens{at}, {result['elapsed_s']:.0f} s"
    )
