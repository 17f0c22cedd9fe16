"""``highrank components RUN``"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_run_argument,
    add_split_option,
    add_stage_option,
)
from highrank.cli.output import add_json_option, computed, print_result

__all__ = ["add_parser", "run"]

EXAMPLES = 3  # contexts; all that were found are in components.json
EXAMPLE_WORDS = 6


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "components",
        help="what each component of a run's mixture is used for",
        description="Use, entropy, divergence and preferred words of the components over a split, and where the "
        "mixture gains over one of them or over another run. Figures go to RUN/components.json.",
    )
    add_run_argument(parser)
    add_split_option(parser)
    add_stage_option(parser)
    parser.add_argument(
        "--control",
        metavar="RUN",
        type=Path,
        help="a run of another head on the same vocabulary, to compare with token by token (its last stage)",
    )
    add_data_option(parser)
    add_device_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import machine
    from highrank.evaluate import components_run
    from highrank.runs import RunFolder
    from highrank.train import corpus_of

    with machine(arguments) as where:
        run_folder = RunFolder.open(arguments.folder)
        control = None if arguments.control is None else RunFolder.open(arguments.control)
        corpus = corpus_of(run_folder, arguments.data)
        result, unrecorded = computed(
            lambda: components_run(
                run_folder,
                corpus,
                arguments.split,
                stage=arguments.stage,
                control=control,
                device=where.device,
                display=where.display,
            )
        )
    print_result(result, _lines(result), as_json=arguments.json, unrecorded=unrecorded)
    return 0


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Components are counted from 1, as in reports; in the JSON from 0."""
    yield (
        f"{result['stage']}, {result['split']}: {result['num_components']} components, {result['tokens']:,} tokens, "
        f"{result['loss_nats']:.4f} nats, perplexity {result['perplexity']:.2f}"
    )
    yield ""
    yield "component  prior  posterior  most likely  alone, nats  prefers"
    for each in result["components"]:
        words = " ".join(entry["word"] for entry in each["words"][:8])
        yield (
            f"{each['component'] + 1:9}  {each['mean_prior']:5.3f}  {each['mean_posterior']:9.3f}  "
            f"{each['most_likely']:11.3f}  {each['loss_nats']:11.4f}  {'(dead) ' if each['dead'] else ''}{words}"
        )
    yield ""
    for name in ("prior", "posterior"):
        entropy = result[f"{name}_entropy"]
        quantiles = ", ".join(f"{100 * entry['quantile']:.0f}% {entry['nats']:.2f}" for entry in entropy["quantiles"])
        most = entropy["largest_nats"]
        yield f"entropy of the {name}: mean {entropy['mean_nats']:.3f} of {most:.3f} nats; {quantiles}"
    posterior = result["posterior"]
    means = ", ".join(f"{share:.3f}" for share in posterior["sorted_mean"])
    below = ", ".join(f"{entry['share']:.1%} below {entry['threshold']:g}" for entry in posterior["share_below"])
    yield f"posteriors of a token, largest first: {means}; {below}"
    divergence = result["divergence"]
    yield (
        f"Jensen-Shannon divergence of two components, in {divergence['contexts']} contexts (0: the same, "
        f"{divergence['largest_nats']:.3f} nats: nothing in common):"
    )
    for k, row in enumerate(divergence["mean_nats"], start=1):
        yield f"{k:9}  " + "  ".join(f"{value:.3f}" for value in row)
    yield f"information of the component about the next word: {divergence['information_nats']:.3f} nats"
    yield from _context_lines(result["contexts"])
    for name, gain in result["gain"].items():
        if gain is not None:
            yield ""
            yield from _gain_lines(name, gain)


def _context_lines(contexts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Some of the contexts in which the component tells most, the telling ones first."""
    telling = sorted(contexts, key=lambda context: -context["information_nats"])[:EXAMPLES]
    for context in telling:
        yield ""
        text = " ".join(context["text"])
        yield f'after "{text}" (then came {context["target"]}): prior, posterior and likelier words of each'
        for k, words in enumerate(context["components"]):
            listed = ", ".join(f"{entry['word']} {entry['probability']:.3f}" for entry in words[:EXAMPLE_WORDS])
            yield f"{k + 1:9}  {context['prior'][k]:5.3f}  {context['posterior'][k]:9.3f}  {listed}"


def _gain_lines(name: str, gain: Mapping[str, Any]) -> Iterator[str]:
    over = {
        "best_component": f"component {gain.get('component', 0) + 1}, the best one alone",
        "likeliest_component": "the component of the largest prior in each context",
        "control": f"{gain.get('run')} ({gain.get('head')}, {gain.get('stage')})",
    }[name]
    yield f"gain over {over}: {gain['gain_nats']:.4f} nats a token ({gain['loss_nats']:.4f} there)"
    titles = {
        "by_target_frequency": "by the word's count in training",
        "by_line_position": "by words of the line before it",
        "by_prior_entropy": "by entropy of the prior, nats",
    }
    for key, title in titles.items():
        cells = ", ".join(f"{_range(row)}: {row['gain_nats']:+.3f}" for row in gain[key])
        yield f"    {title}: {cells}"


def _range(row: Mapping[str, Any]) -> str:
    if row["to"] is None:
        return f"{row['from']:,} on"
    if isinstance(row["from"], float):
        return f"{row['from']:.2f} to {row['to']:.2f}"
    return f"{row['from']:,}" if row["from"] == row["to"] else f"{row['from']:,} to {row['to']:,}"
