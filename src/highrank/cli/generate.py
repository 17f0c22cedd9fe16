"""``highrank generate RUN``"""

import argparse
import time

from highrank.cli.options import add_device_option, add_run_argument, add_stage_option, positive_int
from highrank.cli.output import add_json_option, print_result

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "generate",
        help="text sampled from a run",
        description="Sample words from the mixture's distribution.",
    )
    add_run_argument(parser)
    parser.add_argument("--words", type=positive_int, default=100, help="how many (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the mixture; 0 takes the most probable word (default: 1)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most probable words (0: all)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the fewest words that hold a share P (1: all)"
    )
    parser.add_argument("--prompt", default="", help="the beginning of a line, to go on from (default: none of it)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    parser.add_argument("--no-unk", action="store_true", help="never draw <unk>")
    add_stage_option(parser)
    add_device_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.display import ConsoleDisplay
    from highrank.evaluate import Sampling, generate_text
    from highrank.runs import choose_device, load

    model, vocabulary = load(arguments.folder, stage=arguments.stage, device=choose_device(arguments.device))
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    started = time.perf_counter()
    with ConsoleDisplay() as display:
        text = generate_text(
            model,
            vocabulary,
            arguments.prompt,
            arguments.words,
            sampling=sampling,
            seed=arguments.seed,
            allow_unknown=not arguments.no_unk,
            display=display,
        )
    elapsed_s = time.perf_counter() - started
    rate = arguments.words / elapsed_s
    result = {
        "text": text,
        "prompt": arguments.prompt,
        "words": arguments.words,
        "seed": arguments.seed,
        "sampling": sampling._asdict(),
        "words_per_s": round(rate, 1),
    }
    print_result(
        result, [text.rstrip("\n"), "", f"{arguments.words} words, {rate:.0f} words/s"], as_json=arguments.json
    )
    return 0
