"""The tables of a study: mean and deviation over the seeds that were run, and what is still to run, at what cost."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.studies.plan import Stage, Study, Trial, Variant, read_study
from benchmarks.studies.record import RESULT_OF, Record
from docs.generate.benchmarks import FOLDER
from docs.generate.markdown import table
from docs.generate.results import RESULTS
from highrank.data.catalog import CATALOG
from highrank.runs import parameter_count

__all__ = ["gain_part", "study_part"]

Row = Mapping[str, Any]
TITLES: dict[Stage, str] = {"train": "trained", "finetune": "fine-tuned", "dynamic-eval": "dynamic evaluation"}
GAINS: dict[Stage, str] = {"finetune": "gain by fine-tuning", "dynamic-eval": "gain by dynamic evaluation"}
NOT_RUN = "not run"


def study_part(name: str) -> str:
    """What was found, then what is left to run."""
    study = read_study(FOLDER / "studies" / f"{name}.toml")
    record = Record(RESULTS / f"study_{name}.json", study)
    return f"{_source(study, record)}\n\n{found_table(study, record.rows())}\n{left_table(study, record)}"


def gain_part(name: str) -> str:
    """What the stages after training bring."""
    study = read_study(FOLDER / "studies" / f"{name}.toml")
    return gain_table(study, Record(RESULTS / f"study_{name}.json", study).rows())


def gain_table(study: Study, rows: Sequence[Row]) -> str:
    """Points of validation perplexity by each stage after training, means over seeds, the best variant first."""
    found = []
    for variant in study.variants:
        mine = [row for row in rows if row["variant"] == variant.name]
        if not mine:
            continue
        means = [
            statistics.mean(row["results"][RESULT_OF[stage]]["valid"]["perplexity"] for row in mine)
            for stage in study.stages
        ]
        gains = [f"{before - after:.1f}" if before > after else "none" for before, after in pairwise(means)]
        last = _minutes(mine, study.stages[-1])
        epochs = study.trial(variant, study.seeds[0]).config.train.epochs
        minutes = "not known" if last is None else f"{last:.0f}"
        found.append((means[0], [variant.text, str(epochs), f"{means[0]:.1f}", *gains, minutes]))
    head = ["head", "epochs", "trained, valid", *(GAINS[stage] for stage in study.stages[1:]), "its minutes of a core"]
    lines = [line for _, line in sorted(found, key=lambda each: each[0])]
    return table(head, lines, numbers=range(1, len(head)))


def found_table(study: Study, rows: Sequence[Row]) -> str:
    """One line for every variant; what was not run says so."""
    of_variant = {variant.name: [row for row in rows if row["variant"] == variant.name] for variant in study.variants}
    columns = [*_size_and_cost(study), *(_by_epoch(study, of_variant) if study.stages == ("train",) else [])]
    columns += [Column(f"{TITLES[stage]}, valid / test", _result(stage)) for stage in study.stages]
    lines = [
        [f"`{variant.name}`", variant.text, *(column.cell(variant, of_variant[variant.name]) for column in columns)]
        for variant in study.variants
    ]
    head = ["variant", "what", *(column.head for column in columns)]
    return table(head, lines, numbers=range(2, len(head)))


def left_table(study: Study, record: Record) -> str:
    """What has no result yet, the command that runs it, and the hours of one thread that it is expected to take."""
    left = [trial for trial in study.trials() if record.row(trial) is None]
    if not left:
        return "All of it has been run.\n"
    lines = []
    for variant in study.variants:
        trials = [trial for trial in left if trial.variant == variant]
        if trials:
            seeds = " ".join(str(trial.seed) for trial in trials)
            command = f"`{study.command} --only {variant.name} --seeds {seeds}`"
            lines.append([f"`{variant.name}`", seeds.replace(" ", ", "), _hours(trials, record), command])
    lines.append(["all that is left", "", _hours(left, record), f"`{study.command}`"])
    return "\nStill to run:\n\n" + table(["variant", "seeds", "hours of one thread", "command"], lines, numbers=[2])


class Column(NamedTuple):
    """A heading, and what stands under it for a variant with its rows."""

    head: str
    cell: Callable[[Variant, Sequence[Row]], str]


def _size_and_cost(study: Study) -> list[Column]:
    def parameters(variant: Variant, rows: Sequence[Row]) -> str:
        config = study.trial(variant, study.seeds[0]).config
        return f"{parameter_count(config, CATALOG[config.data.corpus].vocabulary_size):,}"

    def seeds(variant: Variant, rows: Sequence[Row]) -> str:
        return f"{len(rows)} of {len(study.seeds)}"

    def updates(variant: Variant, rows: Sequence[Row]) -> str:
        return f"{statistics.mean(row['updates'] for row in rows):,.0f}" if rows else NOT_RUN

    def epochs(variant: Variant, rows: Sequence[Row]) -> str:
        return str(study.trial(variant, study.seeds[0]).config.train.epochs)

    def minutes(variant: Variant, rows: Sequence[Row]) -> str:
        if not rows:
            return NOT_RUN
        known = _minutes(rows, "train")
        return "not known" if known is None else f"{known:.0f}"

    return [
        Column("parameters", parameters),
        Column("seeds", seeds),
        Column("epochs", epochs),
        Column("updates", updates),
        Column("training, minutes of a core", minutes),
    ]


def _by_epoch(study: Study, of_variant: Mapping[str, Sequence[Row]]) -> list[Column]:
    """Validation perplexity after each epoch, and what the first variant's last one costs with each variant."""
    last = max(trial.config.train.epochs for trial in study.trials())
    first = study.variants[0].name
    goal = _mean(_after_epoch(of_variant[first], last)) if of_variant[first] else None

    def after(epoch: int) -> Column:
        return Column(f"valid after epoch {epoch}", lambda _, rows: _spread(_after_epoch(rows, epoch)))

    def reached(variant: Variant, rows: Sequence[Row]) -> str:
        if goal is None or not rows:
            return NOT_RUN
        for epoch in range(1, last + 1):
            if (mean := _mean(_after_epoch(rows, epoch))) is not None and mean <= goal:
                updates = statistics.mean(row["validation"][epoch - 1]["updates"] for row in rows)
                minutes = _minutes(rows, "train")
                time = "" if minutes is None else f", {minutes * epoch / len(rows[0]['validation']):.0f} min"
                return f"{updates:,.0f}{time}"
        return "not reached"

    return [*(after(epoch) for epoch in range(1, last + 1)), Column(f"updates to the last of `{first}`", reached)]


def _result(stage: Stage) -> Callable[[Variant, Sequence[Row]], str]:
    def cell(variant: Variant, rows: Sequence[Row]) -> str:
        pair = [[row["results"][RESULT_OF[stage]][split]["perplexity"] for row in rows] for split in ("valid", "test")]
        return " / ".join(map(_spread, pair)) if rows else NOT_RUN

    return cell


def _after_epoch(rows: Sequence[Row], epoch: int) -> list[float]:
    return [row["validation"][epoch - 1]["perplexity"] for row in rows if len(row["validation"]) >= epoch]


def _minutes(rows: Sequence[Row], stage: Stage) -> float | None:
    """Of a core, mean over the rows whose processor time is known."""
    mean = _mean([row["cpu_s"][stage] for row in rows if row["cpu_s"][stage] is not None])
    return None if mean is None else mean / 60


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one seed there is none."""
    if not values:
        return NOT_RUN
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def _hours(trials: Iterable[Trial], record: Record) -> str:
    seconds = [record.expected_cpu_s(trial) for trial in trials]
    known = [value for value in seconds if value is not None]
    return f"{sum(known) / 3600:.1f}" if len(known) == len(seconds) else "not timed"


def _source(study: Study, record: Record) -> str:
    file = f"[benchmarks/studies/{study.name}.toml](../benchmarks/studies/{study.name}.toml)"
    path = f"benchmarks/results/{record.path.name}"
    results = f"[{path}](../{path})" if record.path.exists() else f"`{path}`, which is not there yet"
    return f"{study.title}: the study {file} of the recipe `{study.recipe}`, with its rows and times in {results}."
