"""``highrank doctor RUN``"""

import argparse
from typing import TYPE_CHECKING

from highrank.cli.options import add_run_argument
from highrank.cli.output import add_json_option, print_result

if TYPE_CHECKING:
    from highrank.runs.doctor import Ability

__all__ = ["add_parser", "run"]

NAMES = {
    "train": "go on training",
    "finetune": "fine-tune",
    "evaluate": "evaluate",
    "dynamic-eval": "evaluate dynamically",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what is wrong with a run folder, and what can be done with it",
        description="Check every file of a run folder and change none. Exit code 0: nothing is wrong; 1: something is.",
    )
    add_run_argument(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from highrank.cli.display import ConsoleDisplay
    from highrank.runs.doctor import examine

    with ConsoleDisplay() as display:
        diagnosis = examine(arguments.folder, display=display)
    wrong = len(diagnosis.wrong)
    result = {
        "run": str(diagnosis.run),
        "wrong": wrong,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "can": [asdict(ability) for ability in diagnosis.abilities],
    }
    lines = [f"{finding.kind:7}{finding.place}: {finding.text}" for finding in diagnosis.findings]
    lines += [
        f"{diagnosis.run}: {f'{wrong} wrong' if wrong else 'nothing is wrong'}",
        *map(_ability_line, diagnosis.abilities),
    ]
    print_result(result, lines, as_json=arguments.json)
    return 1 if wrong else 0


def _ability_line(ability: "Ability") -> str:
    line = f"{NAMES[ability.what]}: {'yes' if ability.possible else 'no'}, {ability.why}"
    return f"{line}\n    {ability.command}" if ability.command else line
