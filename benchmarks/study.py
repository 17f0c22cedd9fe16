"""What do the settings of a study come to, each with several seeds? Trains them, in sessions of any length.

``python -m benchmarks.study benchmarks/studies/NAME.toml --data DIR --out DIR`` runs what is not in
results/study_NAME.json yet, by the commands that a user would give, the first seed of all variants before the second;
each finished trial adds its row. Ctrl-C, SIGTERM or the end of ``--minutes`` save what is under way, and the same call
goes on with it. ``--time`` measures an update of every variant, from which the hours that are left follow.
"""

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import highrank.cli.environment  # noqa: F401 - as the command line has it
from benchmarks.harness import RESULTS
from benchmarks.studies.plan import Study, Trial, read_study
from benchmarks.studies.record import Record
from benchmarks.studies.session import Session
from benchmarks.studies.timing import time_variants
from benchmarks.studies.trial import Place
from highrank.cli.options import not_negative, positive_int
from highrank.errors import UserError
from highrank.files import explained

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when all is done or the minutes are over, 1 if a trial was given up, 2 for wrong use, and 128 + the
    number of the signal that stopped it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="the study's file, as benchmarks/studies/ablation.toml")
    parser.add_argument("--data", required=True, help="the folder of the corpus")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the runs, VARIANT-seedN in it")
    parser.add_argument("--jobs", type=positive_int, default=1, help="trials at once, a thread each (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="these variants only")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="these seeds only")
    parser.add_argument("--minutes", type=not_negative, help="save and stop after so long")
    parser.add_argument("--dry-run", action="store_true", help="list what would run, with the hours it should take")
    parser.add_argument("--time", action="store_true", help="measure an update of every variant; train nothing")
    parser.add_argument("--repeats", type=positive_int, default=15, help="measurements of --time (default: 15)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file is kept")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    study = read_study(arguments.study)
    record = Record(arguments.results / f"study_{study.name}.json", study)
    trials = study.trials(only=arguments.only, seeds=arguments.seeds)
    if arguments.time:
        _time(study, record, arguments)
        return 0
    left = [trial for trial in trials if record.row(trial) is None]
    _print_plan(record, trials, left)
    if arguments.dry_run or not left:
        return 0
    with explained(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    session = Session(arguments.jobs, minutes=arguments.minutes)
    places = [Place(trial, arguments.out, arguments.data) for trial in left]
    session.run(places, finished=lambda place: record.add_row(place.row()))
    return _ending(session, sum(record.row(trial) is None for trial in trials))


def _ending(session: Session, left: int) -> int:
    print(f"{left or 'no'} trials are left{'; the same call goes on with them' if left else ''}", file=sys.stderr)
    if session.failed:
        print(f"study: given up: {', '.join(session.failed)}", file=sys.stderr)
        return 1
    if session.stopped_by in (0, signal.SIGALRM):
        return 0
    return 128 + session.stopped_by


def _print_plan(record: Record, trials: Sequence[Trial], left: Sequence[Trial]) -> None:
    """What is done and what would run, in its order, with the hours of processor time that whole trials take."""
    hours = {trial.name: _hours(record.expected_cpu_s(trial)) for trial in left}
    for trial in trials:
        state = f"{hours[trial.name]:.1f} hours" if trial.name in hours else "done"
        print(f"{trial.name:28} {state.replace('nan hours', 'not timed')}")
    known = sum(value for value in hours.values() if not math.isnan(value))
    unknown = sum(math.isnan(value) for value in hours.values())
    print(
        f"{len(left)} of {len(trials)} trials to run, {known:.1f} hours of one thread from their beginning"
        + (f", and {unknown} not timed (--time)" if unknown else "")
    )


def _hours(seconds: float | None) -> float:
    return math.nan if seconds is None else seconds / 3600


def _time(study: Study, record: Record, arguments: argparse.Namespace) -> None:
    times = time_variants(study, arguments.only, arguments.data, repeats=arguments.repeats)
    record.add_times(times)
    for name, found in times.items():
        update, tokens = found["update_s"], found["tokens_an_update"]
        expected = sum(found["expected_cpu_s"].values())
        print(
            f"{name:20} {1e3 * update['median_s']:6.1f} ms an update ({1e3 * update['p20_s']:.1f} to "
            f"{1e3 * update['p80_s']:.1f}), {1e6 * update['median_s'] / tokens:5.0f} us a token, "
            f"{expected / 3600:.2f} hours a trial"
        )


if __name__ == "__main__":
    sys.exit(main())
