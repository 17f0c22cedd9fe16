"""``highrank rank RUN...`` and ``highrank rank --matrix FILE``"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_split_option,
    add_stage_option,
    positive_int,
)
from highrank.cli.output import add_json_option, computed, print_result
from highrank.errors import UserError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "rank",
        help="rank of the log-probability matrix of runs, beside the bound of a single softmax",
        description="Singular values and rank of the log-probabilities over held-out contexts, evenly spaced over the "
        "split. The head is computed in float64; figures and singular values go to RUN/rank.json.",
    )
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="*", help="run folders")
    parser.add_argument(
        "--matrix",
        metavar="FILE",
        type=Path,
        help="instead of runs: log-probabilities (contexts, words), a .npy or a .safetensors file of one tensor",
    )
    add_split_option(parser)
    parser.add_argument(
        "--contexts",
        type=positive_int,
        default=0,
        metavar="N",
        help="how many (default: as many as the vocabulary has words, or all of a shorter text)",
    )
    add_stage_option(parser)
    add_data_option(parser)
    add_device_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run, less_memory="take fewer contexts (--contexts, or rows of the matrix)")


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.folders) == bool(arguments.matrix):
        raise UserError("rank: expected run folders, or --matrix FILE", exit_code=2)
    of_runs = {
        "--split": arguments.split != "test",
        "--contexts": arguments.contexts,
        "--stage": arguments.stage,
        "--data": arguments.data,
    }
    if arguments.matrix and (given := [name for name, is_given in of_runs.items() if is_given]):
        raise UserError(f"rank: {', '.join(given)} is for runs; --matrix is measured as it is", exit_code=2)
    return _rank_matrix(arguments) if arguments.matrix else _rank_runs(arguments)


def _rank_matrix(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import machine
    from highrank.evaluate import rank, read_matrix

    with machine(arguments) as where:
        matrix = read_matrix(arguments.matrix)
        try:
            found = rank(matrix, device=where.device, display=where.display)
        except UserError as error:
            raise UserError(f"{arguments.matrix}: {error}") from error
    result = {"matrix": str(arguments.matrix)} | found.as_dict()
    print_result(result, _figures(str(arguments.matrix), result), as_json=arguments.json)
    return 0


def _rank_runs(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import machine
    from highrank.evaluate import PAPER_RANKS, number_of_contexts, rank_run
    from highrank.runs import RunFolder
    from highrank.train import corpus_of

    results, unrecorded = [], None
    with machine(arguments) as where:
        runs = [RunFolder.open(folder) for folder in arguments.folders]
        corpora = [corpus_of(folder, arguments.data) for folder in runs]
        for folder, corpus in zip(runs, corpora, strict=True):  # refused now, not after the others have been measured
            folder.load_model(arguments.stage)
            number_of_contexts(folder, corpus, arguments.split, arguments.contexts)
        for folder, corpus in zip(runs, corpora, strict=True):
            measure = partial(
                rank_run,
                folder,
                corpus,
                arguments.split,
                contexts=arguments.contexts,
                stage=arguments.stage,
                device=where.device,
                display=where.display,
            )
            result, error = computed(measure)
            results.append(result)
            unrecorded = unrecorded or error
    vocabularies = {folder.vocabulary.words for folder in runs}
    told = {"runs": results, "same_vocabulary": len(vocabularies) == 1, "paper": list(PAPER_RANKS)}
    print_result(
        told, _lines(results, PAPER_RANKS, len(vocabularies) == 1), as_json=arguments.json, unrecorded=unrecorded
    )
    return 0


def _lines(
    results: Sequence[Mapping[str, Any]], paper: Sequence[Mapping[str, Any]], same_vocabulary: bool
) -> Iterator[str]:
    from highrank.cli.table import Column, aligned

    figures = ("D", "words", "contexts", "rank", "bound", "effective", "mean KL")
    columns = [Column(""), Column("head"), *(Column(name, right=True) for name in figures)]
    rows = []
    for result in results:
        rows.append(
            [
                f"{result['run']} ({result['stage']}, {result['split']})",
                _head(result),
                str(result["context_features"]),
                f"{result['vocabulary']:,}",
                f"{result['contexts']:,}",
                f"{result['numerical_rank']:,}",
                "none" if result["bound"] is None else f"{result['bound']:,}",
                f"{result['effective_rank']:.1f}",
                f"{result['mean_kl_nats']:.3f}",
            ]
        )
    for entry in paper:
        features, words = str(entry["context_features"]), f"{entry['vocabulary']:,}"
        rows.append(["the paper, Penn Treebank", _head(entry), features, words, "", f"{entry['rank']:,}", "", "", ""])
    yield from aligned(columns, rows)
    yield ""
    if not same_vocabulary:
        yield "The runs have different vocabularies: their ranks and divergences are not to be compared."
    for result in results:
        yield from _figures(result["run"], result)


def _head(entry: Mapping[str, Any]) -> str:
    return "softmax" if entry["head"] == "softmax" else f"{entry['head']}, K={entry['num_components']}"


def _figures(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    largest = result["singular_values"][0]
    yield (
        f"{name}: {result['numerical_rank']:,} of {min(result['contexts'], result['vocabulary']):,} singular values "
        f"above round-off, {result['threshold']:.3g} ({result['threshold'] / largest:.2g} of the largest; "
        f"{result['precision']} numbers, decomposed in {result['dtype']}); {result['elapsed_s']:.0f} s"
    )
    counts = ", ".join(f"{entry['rank']:,} above {entry['relative_threshold']:g}" for entry in result["ranks"])
    counted = f"relative to the largest: {counts}; " if counts else ""  # all may lie below round-off
    yield f"    {counted}effective rank {result['effective_rank']:.1f}"
    yield f"    mean KL divergence of two contexts: {result['mean_kl_nats']:.4f} nats"
