"""``highrank import FILE --out RUN``"""

import argparse
from pathlib import Path

from highrank.cli.options import add_set_option
from highrank.cli.output import add_json_option, notice, print_result

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "import",
        help="make a run folder of a model of the 2017 code",
        description="Make a run folder of the state_dict of a model of the 2017 code (a mixture of softmaxes, or an "
        "AWD-LSTM). Every command that takes a run works on it; only training cannot go on, since the file holds no "
        "optimizer's state.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a state_dict: .pt, .npz or .safetensors")
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run folder to make")
    parser.add_argument(
        "--corpus",
        metavar="NAME",
        help="the text that it was trained on (default: penn for 10,000 words, wikitext-2 for 33,278)",
    )
    parser.add_argument("--data", metavar="DIR", help="the folder with its train.txt, valid.txt and test.txt")
    add_set_option(parser, "a setting that the file does not hold (dropouts, training)")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from highrank.data.catalog import CATALOG, folder_problem
    from highrank.runs import parameter_count
    from highrank.runs.original import import_original

    run_folder, recipe = import_original(
        arguments.file,
        arguments.out,
        corpus_name=arguments.corpus,
        data=arguments.data,
        overrides=arguments.overrides,
    )
    config, corpus = run_folder.config, run_folder.facts["corpus"]
    # Words are numbered in order of appearance: another copy of a text may number them otherwise than the model does.
    entry = CATALOG.get(corpus["name"])
    problem = None if entry is None else folder_problem(entry, Path(corpus["folder"]))
    if problem is not None:
        notice(
            f"{corpus['folder']} is not {corpus['name']} as published ({problem}): its words may have other numbers "
            "than the model's; highrank evaluate shows whether they fit"
        )
    vocab_size = len(run_folder.vocabulary)
    parameters = parameter_count(config, vocab_size)
    result = {
        "run": str(run_folder.path),
        "corpus": {"name": corpus["name"], "folder": corpus["folder"]},
        "as_published": None if entry is None else problem is None,
        "vocabulary": vocab_size,
        "parameters": parameters,
        "model": msgspec.to_builtins(config.model),
        "recipe": recipe,
    }
    settings = f"those of the recipe {recipe}" if recipe else "the defaults (change them with --set)"
    lines = [
        f"{run_folder.path}: {config.model.head}, {parameters:,} parameters, {vocab_size:,} words of {corpus['name']}",
        f"dropouts and training settings, which the file does not hold: {settings}",
    ]
    print_result(result, lines, as_json=arguments.json)
    return 0
