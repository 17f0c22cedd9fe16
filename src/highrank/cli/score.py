"""``highrank score RUN FILE``"""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrank.cli.options import add_device_option, add_run_argument, add_stage_option
from highrank.cli.output import add_json_option, notice, print_result
from highrank.errors import UserError, one_line
from highrank.reading import read_bytes

if TYPE_CHECKING:
    from highrank.evaluate import Score

__all__ = ["add_parser", "run"]

TEXT_LIMIT_BYTES = 1 << 24  # a word takes some hundred bytes of memory
LISTED = 8


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "score",
        help="the surprisal of every word of a text of your own",
        description="A table with tabs between its columns: of every word of the text its line, its place in the line, "
        "the word as it stands and as the model reads it, and its surprisal, -log P(word | all words before it), in "
        "nats and in bits. The text's perplexity goes to standard error.",
    )
    add_run_argument(parser)
    parser.add_argument(
        "file", metavar="FILE", help="text in UTF-8 with a sentence or a paragraph on each line; -: standard input"
    )
    parser.add_argument("--by-line", action="store_true", help="read every line as if there were none before it")
    parser.add_argument(
        "--components",
        action="store_true",
        help="add each component's prior and posterior (of a mixture of softmaxes)",
    )
    add_stage_option(parser)
    add_device_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    text = _text(arguments.file)

    from highrank.cli.display import ConsoleDisplay
    from highrank.data.typed import Word, read_as
    from highrank.evaluate import score_text
    from highrank.heads import MixtureOfSoftmaxes
    from highrank.perplexity import perplexity
    from highrank.runs import choose_device, load

    model, vocabulary = load(arguments.folder, stage=arguments.stage, device=choose_device(arguments.device))
    if arguments.components and not isinstance(model.head, MixtureOfSoftmaxes):
        raise UserError(f"--components: {arguments.folder} has one softmax, not a mixture of softmaxes", exit_code=2)
    started = time.perf_counter()
    with ConsoleDisplay() as display:
        score = score_text(model, vocabulary, text, by_line=arguments.by_line, display=display)
    nats = score.nats
    loss = math.fsum(nats) / len(nats)
    if not math.isfinite(loss):
        raise UserError(f"{arguments.folder}: the loss of the text is not a number")
    strange = [word.typed for word in score.words if Word(word.typed, word.read).is_unknown]
    rows = list(_rows(score, components=arguments.components))
    result = {
        "run": str(arguments.folder),
        "text": arguments.file,
        "by_line": arguments.by_line,
        "tokens": len(nats),
        "loss_nats": loss,
        "perplexity": perplexity(loss),
        "not_in_the_vocabulary": len(strange),
        "elapsed_s": time.perf_counter() - started,
        "words": rows,
    }
    print_result(result, _table(rows, score.prior.shape[1] if arguments.components else 0), as_json=arguments.json)
    notice(f"{arguments.file}: perplexity {result['perplexity']:.2f}, {loss:.4f} nats over {len(nats):,} tokens")
    if strange:
        some = list(dict.fromkeys(strange))
        more = ", ..." if len(some) > LISTED else ""
        notice(one_line(f"not in the vocabulary, {read_as(vocabulary)}: {', '.join(some[:LISTED])}{more}"))
    return 0


def _text(file: str) -> str:
    content = sys.stdin.buffer.read(TEXT_LIMIT_BYTES + 1) if file == "-" else read_bytes(Path(file), TEXT_LIMIT_BYTES)
    if len(content) > TEXT_LIMIT_BYTES:
        raise UserError(f"standard input: more than the limit of {TEXT_LIMIT_BYTES:,} bytes for such a text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (at byte {error.start}); convert it to UTF-8") from error


def _rows(score: "Score", *, components: bool) -> Iterator[dict[str, Any]]:
    parts = zip(score.prior.tolist(), score.posterior.tolist(), strict=True)
    for word in score.words:
        row = word._asdict() | {"bits": None if word.nats is None else word.nats / math.log(2)}
        if components:
            prior, posterior = next(parts) if word.nats is not None else (None, None)
            row |= {"prior": prior, "posterior": posterior}
        yield row


def _table(rows: Iterable[Mapping[str, Any]], components: int) -> Iterator[str]:
    """Components are counted from 1, as in reports. What there is not is empty."""
    names = ("prior", "posterior") if components else ()
    heads = [f"{name}_{k}" for name in names for k in range(1, components + 1)]
    yield "\t".join(["line", "place", "typed", "read", "nats", "bits", *heads])
    for row in rows:
        numbers = [row["nats"], row["bits"]]
        for name in names:
            numbers += row[name] or [None] * components
        texts = [str(row["line"]), str(row["place"]), row["typed"], row["read"] or ""]
        yield "\t".join(texts + ["" if number is None else f"{number:.6f}" for number in numbers])
