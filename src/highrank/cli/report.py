"""``highrank report RUN...``"""

import argparse
import shlex
import sys
from pathlib import Path

from highrank.cli.options import add_data_option, add_device_option, not_negative_int
from highrank.cli.output import add_json_option, print_result
from highrank.errors import UserError

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "report",
        help="one HTML file about runs: results, training, spectrum, components, a passage",
        description="Write one self-contained HTML file about one run or several: results beside the paper's, "
        "training, the spectrum, the components, a passage of test text with the predictions behind each word, the "
        "settings. Their rank, and the passage after dynamic evaluation, are in it if they have been measured.",
    )
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="+", help="run folders with the same vocabulary")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: report.html in the first run)")
    parser.add_argument(
        "--figures", metavar="DIR", type=Path, help="write each plot there too, as SVG and PDF, with its data as CSV"
    )
    add_data_option(parser)
    parser.add_argument("--rank", action="store_true", help="measure the rank of runs that lack it (minutes to hours)")
    parser.add_argument(
        "--no-components", action="store_true", help="do not measure the components of runs that lack them"
    )
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="compute the gradient statistics that the passage after dynamic evaluation needs, where they are missing",
    )
    parser.add_argument(
        "--words",
        metavar="N",
        type=not_negative_int,
        default=200,
        help="length of the passage; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--from",
        metavar="TOKEN",
        type=not_negative_int,
        default=1000,
        dest="passage_from",
        help="the passage begins with the first line from here on (default: %(default)s)",
    )
    add_device_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import machine
    from highrank.report import (
        Wanted,
        check_comparable,
        check_plotting,
        check_writable,
        figures_of,
        gather,
        summary_rows,
        write_figures,
        write_page,
    )
    from highrank.runs import RunFolder
    from highrank.train import corpus_of

    if arguments.dynamic and not arguments.words:
        raise UserError("report: --dynamic is for the passage, which --words 0 leaves out", exit_code=2)
    check_plotting()
    out = arguments.out or arguments.folders[0] / "report.html"
    wanted = Wanted(
        arguments.rank, not arguments.no_components, arguments.dynamic, arguments.words, arguments.passage_from
    )
    with machine(arguments) as where:
        runs = [RunFolder.open(folder) for folder in arguments.folders]
        check_comparable(runs)
        check_writable(out, arguments.figures)  # which makes their folders
        subjects = gather(
            runs,
            lambda run: corpus_of(run, arguments.data),
            wanted,
            device=where.device,
            display=where.display,
        )
        figures = figures_of(subjects)
        where.display.message("drawing the report")
        size = write_page(out, subjects, figures, command=shlex.join(["highrank", *sys.argv[1:]]))
        written = write_figures(arguments.figures, figures) if arguments.figures is not None else []
    missing = {subject.label: subject.notes for subject in subjects if subject.notes}
    result = {
        "report": str(out),
        "bytes": size,
        "figures": [str(path) for path in written],
        "runs": [
            {
                "label": subject.label,
                "run": str(subject.run.path),
                "parameters": subject.parameters,
                "stages": summary_rows(subject.run),
                "numerical_rank": None if subject.rank is None else subject.rank.numerical_rank,
                "passage": None
                if subject.passage is None
                else {
                    "from": subject.passage.start,
                    "words": len(subject.passage.words),
                    "after_dynamic_evaluation": subject.passage.after is not None,
                },
                "missing": subject.notes,
            }
            for subject in subjects
        ],
    }
    lines = [f"not in the report: {label}: {note}" for label, notes in missing.items() for note in notes.values()]
    lines += [f"{len(written)} files in {arguments.figures}"] if written else []
    lines += [f"{out}: {size / 2**20:.1f} MiB"]
    print_result(result, lines, as_json=arguments.json)
    return 0
