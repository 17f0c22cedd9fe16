"""``highrank cache-eval RUN``"""

import argparse
from typing import Any

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_run_argument,
    add_split_option,
    add_stage_option,
    positive_int,
)
from highrank.cli.output import add_json_option, computed, print_result

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "cache-eval",
        help="exact perplexity of a run with a neural cache, the pointer of the AWD-LSTM",
        description="Mixes the model with a cache of the words that came after hidden states like the present one "
        "(Grave et al. 2016). Nothing is learned. Without --theta and --share they are tuned on the validation text.",
    )
    add_run_argument(parser)
    add_split_option(parser)
    add_stage_option(parser)
    add_data_option(parser)
    parser.add_argument("--window", type=positive_int, metavar="N", help="positions in the cache (default: 500)")
    parser.add_argument("--theta", type=float, help="how sharply like and unlike hidden states are told apart")
    parser.add_argument("--share", type=float, help="of the cache in the mixture, from 0 to below 1")
    add_device_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.display import ConsoleDisplay
    from highrank.evaluate import DEFAULT_WINDOW, evaluate_run_with_cache
    from highrank.runs import RunFolder, choose_device
    from highrank.train import corpus_of

    run_folder = RunFolder.open(arguments.folder)
    device = choose_device(arguments.device)
    with ConsoleDisplay() as display:
        corpus = corpus_of(run_folder, arguments.data, display=display)
        result, unrecorded = computed(
            lambda: evaluate_run_with_cache(
                run_folder,
                corpus,
                arguments.split,
                window=arguments.window or DEFAULT_WINDOW,
                theta=arguments.theta,
                share=arguments.share,
                stage=arguments.stage,
                device=device,
                display=display,
            )
        )
    print_result(result, [_line(result)], as_json=arguments.json, unrecorded=unrecorded)
    return 0


def _line(result: dict[str, Any]) -> str:
    tuned = "" if result["tuned_on"] is None else f", tuned on {result['tuned_on']}"
    settings = f"window {result['window']}, theta {result['theta']:g}, share {result['share']:g}{tuned}"
    return (
        f"{result['stage']}, {result['split']}: perplexity {result['perplexity']:.2f}, {result['loss_nats']:.4f} nats "
        f"over {result['tokens']:,} tokens with a cache ({settings}; without: "
        f"{result['without_cache']['perplexity']:.2f}), {result['elapsed_s']:.0f} s"
    )
