"""What every command prints: one JSON object under ``--json``, else lines for people; notices on standard error."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from highrank.errors import NotRecordedError, UserError

__all__ = ["add_json_option", "computed", "notice", "print_result"]


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")


def notice(message: str) -> None:
    """Say something to the person at the terminal without touching standard output."""
    print(message, file=sys.stderr, flush=True)


def computed(compute: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], NotRecordedError | None]:
    """What ``compute`` returns; or what it computed, and the error, for ``print_result`` to say."""
    try:
        return compute(), None
    except NotRecordedError as error:
        return error.result, error


def print_result(
    result: Mapping[str, object],
    lines: Iterable[str],
    *,
    as_json: bool,
    unrecorded: NotRecordedError | None = None,
) -> None:
    """Print ``result`` as JSON, or ``lines`` for a person: the same figures in both. Then raises UserError if they are
    ``unrecorded``."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        for line in lines:
            print(line)
    if unrecorded is not None:
        raise UserError(str(unrecorded), exit_code=unrecorded.exit_code) from unrecorded  # its result has been told
