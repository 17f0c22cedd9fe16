"""``highrank dynamic-eval RUN``"""

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
from highrank.cli.output import add_json_option, computed, print_result

__all__ = ["add_parser", "run"]

SEARCH_TOKENS = 20_000


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "dynamic-eval",
        help="perplexity of a run that learns from the text it is scored on",
        description="Dynamic evaluation with the RMS rule of Krause et al. 2017. Settings come from the run's recipe.",
    )
    add_run_argument(parser)
    splits = parser.add_mutually_exclusive_group()
    add_split_option(splits)
    add_stage_option(parser)
    add_data_option(parser)
    parser.add_argument("--lamb", type=float, help="decay towards the trained weights")
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--epsilon", type=float, help="floor of the divisor")
    parser.add_argument("--bptt", type=positive_int, help="time steps a segment")
    parser.add_argument(
        "--ms",
        action="store_const",
        const=True,
        dest="mean_square",
        help="root of the mean instead of the sum of squared gradients (needs other --lr and --lamb)",
    )
    splits.add_argument(
        "--search",
        type=positive_int,
        nargs="?",
        const=SEARCH_TOKENS,
        default=0,
        metavar="TOKENS",
        help="tune lr and lamb on the first TOKENS of the validation text (default: %(const)s), "
        "then report valid and test",
    )
    parser.add_argument(
        "--keep-weight-drop",
        action="store_true",
        help="leave DropConnect on, only to measure the defect of the 2018 port; the result is not recorded",
    )
    add_device_option(parser)
    add_workers_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import machine
    from highrank.evaluate import dynamic_evaluate_run, dynamic_settings, prepare_statistics
    from highrank.runs import RunFolder
    from highrank.train import corpus_of

    splits = ("valid", "test") if arguments.search else (arguments.split,)
    with machine(arguments) as where:
        run_folder = where.workers.first(lambda: RunFolder.open(arguments.folder))
        corpus = corpus_of(run_folder, arguments.data, display=where.display)
        settings = dynamic_settings(
            run_folder,
            lamb=arguments.lamb,
            lr=arguments.lr,
            epsilon=arguments.epsilon,
            bptt=arguments.bptt,
            mean_square=arguments.mean_square,
            weight_dropout_seed=run_folder.config.train.seed if arguments.keep_weight_drop else None,
        )
        prepare_statistics(
            run_folder,
            corpus,
            settings,
            stage=arguments.stage,
            device=where.device,
            display=where.display,
            workers=where.workers,
        )
        if not where.workers.is_first:
            return 0  # the walk over the text is one worker's
        result, unrecorded = computed(
            lambda: dynamic_evaluate_run(
                run_folder,
                corpus,
                splits,
                settings,
                stage=arguments.stage,
                search_tokens=arguments.search,
                device=where.device,
                display=where.display,
            )
        )
    chosen = result["settings"]
    lines = [
        f"dynamic evaluation of {result['stage']}, {split}: perplexity {result[split]['perplexity']:.2f}, "
        f"{result[split]['loss_nats']:.4f} nats over {result[split]['tokens']:,} tokens, "
        f"{result[split]['elapsed_s']:.0f} s (lr {chosen['lr']:g}, lamb {chosen['lamb']:g})"
        for split in splits
    ]
    print_result(result, lines, as_json=arguments.json, unrecorded=unrecorded)
    return 0
