"""The results of runs and of the paper as rows of one table."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from highrank.evaluate.paper import PAPER, Published
from highrank.report.gather import Subject
from highrank.runs.records import STAGE_TITLES, Result

__all__ = ["Cell", "Row", "paper_of", "result_rows"]

Split = Literal["valid", "test"]


class Cell(NamedTuple):
    """A perplexity, or why there is none. ``best`` of its column among the runs; ``in_training``: of a validation
    then, in columns, not over the whole text; ``so_far``: of a stage that has not come to its end."""

    perplexity: float | None
    why_not: str = ""
    in_training: bool = False
    so_far: bool = False
    best: bool = False


class Row(NamedTuple):
    """cells: (stage, split) -> Cell."""

    name: str
    kind: str
    parameters: str
    cells: dict[tuple[str, Split], Cell]
    elapsed_s: float | None
    ours: bool


SPLITS: tuple[Split, ...] = ("valid", "test")
HEADS = {
    "softmax": "one softmax",
    "mixture-of-contexts": "mixture of {} contexts",
    "mixture-of-softmaxes": "mixture of {} softmaxes",
}


def result_rows(subjects: Sequence[Subject]) -> list[Row]:
    """The runs in their order, then what the paper has on their corpus."""
    rows = [_our_row(subject) for subject in subjects]
    for stage in STAGE_TITLES:
        for split in SPLITS:
            measured = [
                cell.perplexity
                for row in rows
                if (cell := row.cells[stage, split]).perplexity is not None and not cell.in_training
            ]
            for row in rows:
                cell = row.cells[stage, split]
                if len(measured) > 1 and cell.perplexity == min(measured) and not cell.in_training:
                    row.cells[stage, split] = cell._replace(best=True)
    return rows + [_their_row(published) for published in paper_of(subjects)]


def paper_of(subjects: Sequence[Subject]) -> tuple[Published, ...]:
    """The paper's models, if all runs are about one of its corpora as published."""
    facts = [subject.run.facts.get("corpus", {}) for subject in subjects]
    names = {corpus.get("name") if corpus.get("as_published") is True else None for corpus in facts}
    (name,) = names if len(names) == 1 else (None,)
    return PAPER.get(name, ()) if isinstance(name, str) else ()


def _our_row(subject: Subject) -> Row:
    results = subject.run.results
    cells = {
        (stage, split): _our_cell(subject, results.get(stage, {}), stage, split)
        for stage in STAGE_TITLES
        for split in SPLITS
    }
    seconds = [results.get(stage, {}).get("elapsed_s") for stage in ("train", "finetune")]
    known = [float(value) for value in seconds if value is not None]
    points = subject.history.points
    return Row(
        subject.label,
        HEADS[subject.run.config.model.head].format(subject.run.config.model.num_components),
        f"{subject.parameters:,}",
        cells,
        max(sum(known), points[-1].elapsed_s if points else 0.0) or None,
        ours=True,
    )


def _our_cell(subject: Subject, result: Result, stage: str, split: Split) -> Cell:
    at_the_end, best = result.get("valid_perplexity"), subject.history.best(stage)
    so_far = at_the_end is None and best is not None  # an imported model has neither
    perplexity = result.get(split, {}).get("perplexity")
    if perplexity is not None:
        return Cell(float(perplexity), so_far=so_far)
    if split == "valid":
        if at_the_end is not None:
            return Cell(float(at_the_end), in_training=True)
        if best is not None:
            return Cell(best.perplexity, in_training=True, so_far=True)
    begun = bool(result) or any(point.stage == stage for point in subject.history.points)
    return Cell(None, "not measured" if begun else "not run")


def _their_row(published: Published) -> Row:
    cells = {}
    for stage in STAGE_TITLES:
        both = published.perplexity.get(stage)
        for number, split in enumerate(SPLITS):
            cells[stage, split] = Cell(both[number]) if both else Cell(None, "–")
    return Row(published.name, "the paper", f"{published.parameters_millions}M", cells, None, ours=False)
