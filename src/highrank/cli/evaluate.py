"""``highrank evaluate RUN``"""

import argparse

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_run_argument,
    add_split_option,
    add_stage_option,
    add_workers_options,
    positive_int,
)
from highrank.cli.output import add_json_option, print_result

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


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import machine
    from highrank.evaluate import evaluate_run
    from highrank.runs import RunFolder
    from highrank.train import corpus_of

    with machine(arguments) as where:
        run_folder = where.workers.first(lambda: RunFolder.open(arguments.folder))
        corpus = corpus_of(run_folder, arguments.data, display=where.display)
        result = evaluate_run(
            run_folder,
            corpus,
            arguments.split,
            stage=arguments.stage,
            batch=arguments.batch,
            paper=arguments.paper,
            device=where.device,
            display=where.display,
            workers=where.workers,
        )
    if not where.workers.is_first:
        return 0
    counted = " (counted as in the paper's code)" if arguments.paper else ""
    line = (
        f"{result['stage']}, {result['split']}: perplexity {result['perplexity']:.2f}, "
        f"{result['loss_nats']:.4f} nats over {result['tokens']:,} tokens{counted}, {result['elapsed_s']:.0f} s"
    )
    print_result(result, [line], as_json=arguments.json)
    return 0
