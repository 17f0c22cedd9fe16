"""``highrank finetune RUN``"""

import argparse

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_run_argument,
    add_set_option,
    add_training_options,
    add_workers_options,
)
from highrank.cli.output import add_json_option, print_result
from highrank.cli.train import best_lines

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "finetune",
        help="fine-tune a trained run with averaged SGD",
        description="Fine-tune the best trained model of a run with averaged SGD, until validation stalls.",
    )
    add_run_argument(parser)
    add_data_option(parser)
    add_set_option(parser, "change a setting of the run, of [finetune] or [dynamic], or how updates are computed")
    add_training_options(parser)
    add_device_option(parser)
    add_workers_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import interruptible, machine
    from highrank.runs import RunFolder
    from highrank.train import corpus_of, finetune, set_later_settings

    with machine(arguments) as where, interruptible(where) as ending:
        opened = where.workers.first(lambda: RunFolder.open(arguments.folder))
        corpus = corpus_of(opened, arguments.data, display=where.display)
        run_folder = where.workers.first(
            lambda: set_later_settings(
                opened,
                corpus,
                arguments.overrides,
                resume=arguments.resume,
                workers=where.workers.count,
                device=where.device,
                notice=where.display.message,
            )
        )
        figures = finetune(run_folder, corpus, where, resume=arguments.resume)
    if ending.exit_code or not where.workers.is_first:
        return ending.exit_code
    result = {"run": str(run_folder.path), "stage": "finetune"} | figures
    print_result(result, best_lines("fine-tuned", figures), as_json=arguments.json)
    return 0
