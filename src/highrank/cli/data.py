"""``highrank data list | get NAME | make FILE | info NAME``: corpora: which there are, how to have one, figures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrank.cli.options import not_negative_int
from highrank.cli.output import add_json_option, print_result

if TYPE_CHECKING:
    from highrank.data.corpus import Corpus

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("data", help="list, fetch and describe corpora")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="the corpora known by name, and where each is on this computer")
    get = actions.add_parser("get", help="fetch a corpus from its mirrors, or build it")
    get.add_argument("name", metavar="NAME", help="a name that `highrank data list` shows")
    get.add_argument("--out", metavar="DIR", help="the folder to make (default: your own store of corpora)")
    make = actions.add_parser("make", help="cut a text of your own into train.txt, valid.txt and test.txt")
    make.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a text in UTF-8, with spaces between its words, a sentence or paragraph a line",
    )
    make.add_argument(
        "--out", metavar="DIR", type=Path, help="the folder to make (default: FILE's name without its ending, here)"
    )
    make.add_argument(
        "--vocabulary",
        type=not_negative_int,
        default=10_000,
        metavar="N",
        help="its largest size, <unk> and <eos> included; 0: every word (default: %(default)s)",
    )
    make.add_argument("--keep-case", action="store_true", help="keep capital letters (default: all lower case)")
    info = actions.add_parser("info", help="tokens, vocabulary and unknown words of a corpus")
    info.add_argument("name", metavar="NAME", help="a known corpus, or any name with --data")
    info.add_argument("--data", metavar="DIR", help="the folder with train.txt, valid.txt and test.txt")
    for action in (listing, get, make, info):
        add_json_option(action)


def run(arguments: argparse.Namespace) -> int:
    return {"list": _list, "get": _get, "make": _make, "info": _info}[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> int:
    from highrank.data.catalog import CATALOG, present_folder

    corpora = []
    for entry in CATALOG.values():
        folder = present_folder(entry.name)
        corpora.append(
            {
                "name": entry.name,
                "title": entry.title,
                "licence": entry.licence,
                "tokens": {split: known.tokens for split, known in entry.splits.items()},
                "vocabulary_size": entry.vocabulary_size,
                "folder": None if folder is None else str(folder),
            }
        )
    lines = [
        f"{entry['name']:12}{entry['title']} ({entry['licence']}): {entry['folder'] or 'not here yet'}"
        for entry in corpora
    ]
    print_result({"corpora": corpora}, lines, as_json=arguments.json)
    return 0


def _get(arguments: argparse.Namespace) -> int:
    from highrank.cli.display import ConsoleDisplay
    from highrank.data.catalog import catalog_entry
    from highrank.data.download import get_corpus

    entry = catalog_entry(arguments.name)
    with ConsoleDisplay() as display:
        folder = get_corpus(entry, Path(arguments.out).expanduser() if arguments.out else None, display=display)
    print_result({"name": entry.name, "folder": str(folder)}, [str(folder)], as_json=arguments.json)
    return 0


def _make(arguments: argparse.Namespace) -> int:
    from highrank.cli.display import ConsoleDisplay
    from highrank.data.corpus import load_corpus
    from highrank.data.make import make_corpus

    target = Path(arguments.file.stem) if arguments.out is None else arguments.out.expanduser()
    with ConsoleDisplay() as display:
        folder = make_corpus(
            arguments.file,
            target,
            vocabulary_size=arguments.vocabulary,
            keep_case=arguments.keep_case,
            display=display,
        )
        corpus = load_corpus(folder, display=display)
    result = _figures(corpus)
    print_result(result, _describe(result, None), as_json=arguments.json)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from highrank.cli.display import ConsoleDisplay
    from highrank.data.catalog import CATALOG, find_corpus, folder_problem
    from highrank.data.corpus import load_corpus

    with ConsoleDisplay() as display:
        folder = find_corpus(arguments.name, arguments.data, display=display)
        corpus = load_corpus(folder, name=arguments.name, display=display)
    entry = CATALOG.get(arguments.name)
    problem = None if entry is None else folder_problem(entry, corpus.folder)
    result = _figures(corpus) | {"as_published": None if entry is None else problem is None}
    print_result(result, _describe(result, problem), as_json=arguments.json)
    return 0


def _figures(corpus: "Corpus") -> dict[str, Any]:
    from highrank.data.corpus import corpus_statistics

    return {
        "name": corpus.name,
        "folder": str(corpus.folder),
        **corpus_statistics(corpus),
        "sha256": dict(corpus.sha256),
    }


def _describe(result: dict[str, Any], problem: str | None) -> list[str]:
    lines = [f"{result['name']} in {result['folder']}", f"vocabulary  {result['vocabulary_size']:,} types"]
    for split, tokens in result["tokens"].items():
        line = f"{split:12}{tokens:,} tokens, {result['unknown'][split]:.2%} <unk>"
        if split in result["out_of_vocabulary"]:
            line += f", {result['out_of_vocabulary'][split]:.2%} of types that train has not"
        lines.append(line)
    if result.get("as_published") is not None:
        lines.append("the text as published" if problem is None else f"not the text as published: {problem}")
    return lines
