"""``highrank explore RUN``"""

import argparse

from highrank.cli.options import add_data_option, add_device_option, add_run_argument, add_stage_option
from highrank.errors import not_importable

__all__ = ["add_parser", "run"]

LAST_PORT = 65_535


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "explore",
        help="a local page: type a context, see the next word and the components behind it",
        description="Serve a page on a run to this machine alone (127.0.0.1), at an address with a secret in it, which "
        "is printed. Type a context to see the next-word distribution and the components behind it; adapt to a text of "
        "your own. Nothing is written into the run. Ctrl-C ends it.",
    )
    add_run_argument(parser)
    add_stage_option(parser)
    add_data_option(parser)
    add_device_option(parser)
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="(default: a free one)")
    parser.add_argument("--no-open-browser", action="store_true", help="only print the address")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.explore import Explorer
    from highrank.runs import RunFolder, choose_device
    from highrank.train import corpus_of

    try:
        from highrank.explore import server
    except ImportError as error:
        raise not_importable(error, "explore") from error
    with server.listen(arguments.port) as listening:  # before the model is loaded
        folder = RunFolder.open(arguments.folder)
        explorer = Explorer(
            folder,
            lambda: corpus_of(folder, arguments.data),
            stage=arguments.stage,
            device=choose_device(arguments.device),
        )
        return server.serve(explorer, listening, browser=not arguments.no_open_browser)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(f"expected a port from 0 (any free one) to {LAST_PORT}, got {text}")
    return int(text)
