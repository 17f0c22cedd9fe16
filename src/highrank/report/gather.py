"""What a report shows of its runs: read where it is there, measured where that is cheap or asked for."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from highrank.data import Corpus
from highrank.data.vocabulary import END_OF_LINE
from highrank.errors import NotRecordedError, UserError
from highrank.evaluate import (
    DynamicSettings,
    Passage,
    cached_statistics,
    components_run,
    known_statistics,
    line_start,
    rank_run,
    read_passage,
    scored_settings,
)
from highrank.progress import SILENT, Display
from highrank.reading import read_json
from highrank.report.history import History, history_of
from highrank.runs import RunFolder, parameter_count
from highrank.runs.measured import (
    COMPONENTS_FILE,
    RANK_FILE,
    Components,
    RankFigures,
    checked_components,
    checked_rank,
    is_of_this_model,
)

__all__ = ["Subject", "Wanted", "check_comparable", "gather"]

SPLIT = "test"
LISTED_WORDS = 5
Figures = TypeVar("Figures", RankFigures, Components)


class Wanted(NamedTuple):
    """What to measure if the run does not have it yet (rank: minutes to hours; components: a pass over the test text;
    dynamic: a pass over the training text), and the passage: so many words of the test text (0: none) from the first
    line on that begins at or after ``passage_from``."""

    rank: bool = False
    components: bool = True
    dynamic: bool = False
    passage_words: int = 200
    passage_from: int = 1000


@dataclass
class Subject:
    """A run of the report, under a short name of its own. ``notes``: why a part of it is missing, by part: "rank",
    "components", "passage", "dynamic"."""

    label: str
    run: RunFolder
    parameters: int
    history: History
    stage: str | None  # of the model, None if there is none yet
    rank: RankFigures | None = None
    components: Components | None = None
    passage: Passage | None = None
    settings: DynamicSettings | None = None  # of dynamic evaluation, if the passage has it
    notes: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def noted(self, part: str) -> Iterator[None]:
        """What a user could mend is told in the report, in the place of the part: the others can still be shown."""
        try:
            yield
        except UserError as error:
            self.notes[part] = str(error)


def gather(
    runs: Sequence[RunFolder],
    corpus_of: Callable[[RunFolder], Corpus],
    wanted: Wanted,
    *,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
) -> list[Subject]:
    """Raises UserError if the runs cannot be compared: one is given twice, or they have different vocabularies."""
    check_comparable(runs)
    subjects = []
    for label, run in zip(_labels([run.path for run in runs]), runs, strict=True):
        subject = Subject(
            label, run, parameter_count(run.config, len(run.vocabulary)), history_of(run), _last_stage(run)
        )
        subjects.append(subject)
        if subject.stage is None:
            subject.notes |= dict.fromkeys(("rank", "components", "passage"), "no trained model yet: train it first")
            continue
        corpus = None
        with subject.noted("passage"):
            corpus = corpus_of(run)
        _add_rank(subject, subject.stage, corpus if wanted.rank else None, device, display)
        _add_components(subject, subject.stage, corpus if wanted.components else None, _control(runs), device, display)
        if corpus is not None and wanted.passage_words:
            with subject.noted("passage"):
                _add_passage(subject, subject.stage, corpus, wanted, device, display)
    return subjects


def check_comparable(runs: Sequence[RunFolder]) -> None:
    """Raises UserError naming the first two runs that cannot stand in one report, and why."""
    first, *others = runs
    for run in others:
        if difference := first.vocabulary.difference(run.vocabulary):
            raise UserError(
                f"{first.path} and {run.path} have different vocabularies ({difference}): neither their perplexities "
                "nor their predictions can be compared; make a report of each"
            )
    resolved = Counter(run.path.resolve() for run in runs)
    twice = [path for path, count in resolved.items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: given twice", exit_code=2)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _last_stage(run: RunFolder) -> str | None:
    try:
        return run.last_stage()
    except UserError:
        return None


def _add_rank(
    subject: Subject, stage: str, corpus: Corpus | None, device: torch.device | str, display: Display
) -> None:
    run = subject.run
    measure = None
    if corpus is not None:
        measure = partial(rank_run, run, corpus, SPLIT, stage=stage, device=device, display=display)
    with subject.noted("rank"):
        how = f"highrank rank {run.path}, or report --rank,"
        subject.rank = _measured(run, stage, RANK_FILE, checked_rank, measure, how, display)


def _control(runs: Sequence[RunFolder]) -> RunFolder | None:
    """The first run with one softmax: what the mixtures are compared with, token by token."""
    return next((run for run in runs if run.config.model.head == "softmax" and _last_stage(run) is not None), None)


def _add_components(
    subject: Subject,
    stage: str,
    corpus: Corpus | None,
    control: RunFolder | None,
    device: torch.device | str,
    display: Display,
) -> None:
    run = subject.run
    if run.config.model.head == "softmax":
        subject.notes["components"] = "one softmax: it has no components"
        return
    if run.config.model.head == "mixture-of-contexts":
        subject.notes["components"] = "a mixture of contexts: its components have no predictions of their own"
        return
    measure = None
    if corpus is not None:
        measure = partial(
            components_run, run, corpus, SPLIT, stage=stage, control=control, device=device, display=display
        )
    with subject.noted("components"):
        how = f"highrank components {run.path}"
        subject.components = found = _measured(run, stage, COMPONENTS_FILE, checked_components, measure, how, display)
        if control is not None and not _is_against(found, control):
            subject.notes["components"] = (
                f"the gain over {control.path}: {how} --control {control.path} measures it, in place of the figures "
                "that are there"
            )


def _is_against(found: Components, control: RunFolder) -> bool:
    against = found.gain.control
    return (
        against is not None
        and Path(against.run or "").resolve() == control.path.resolve()
        and against.stage == control.last_stage()
    )


def _measured(
    run: RunFolder,
    stage: str,
    name: str,
    checked: Callable[[dict[str, Any], Path], Figures],
    measure: Callable[[], dict[str, Any]] | None,
    how: str,
    display: Display,
) -> Figures:
    """What the file ``name`` of the run says of the model as it is now, else what ``measure`` finds of it.

    Raises UserError with ``how`` to measure it, where it is not there and not to be measured.
    """
    path = run.path / name

    def if_of_this_model(figures: dict[str, Any]) -> Figures | None:
        return found if is_of_this_model(run.path, found := checked(figures, path), stage) else None

    figures = None
    try:
        figures = if_of_this_model(read_json(path)) if path.exists() else None
    except UserError:  # damaged
        if measure is None:
            raise
    if figures is None and measure is not None:
        try:
            found = measure()
        except NotRecordedError as error:
            display.message(str(error))
            found = error.result
        figures = if_of_this_model(found)  # training beside may have found a better model
    if figures is None:
        older = " on the model as it is now" if path.exists() else ""
        raise UserError(f"not measured{older}: {how} measures it")
    return figures


def _add_passage(
    subject: Subject, stage: str, corpus: Corpus, wanted: Wanted, device: torch.device | str, display: Display
) -> None:
    run = subject.run
    tokens = corpus.tokens[SPLIT]
    stamp, model = run.stamped_model(stage, device=device)
    # A short text is shown from early on, or there would be nothing left to show.
    wanted_start = min(wanted.passage_from, max(1, len(tokens) - wanted.passage_words))
    read = partial(
        read_passage,
        model,
        tokens,
        start=line_start(tokens, wanted_start, run.vocabulary.index.get(END_OF_LINE)),
        length=wanted.passage_words,
        top=LISTED_WORDS,
        display=display,
    )
    with subject.noted("dynamic"):
        settings = scored_settings(run, stage)
        statistics = known_statistics(run, stamp, model, corpus, settings, display=display)
        if statistics is None and wanted.dynamic:
            statistics = cached_statistics(run, stamp, model, corpus, settings, display)
        if statistics is None:
            raise UserError(
                f"the passage is without dynamic evaluation: highrank dynamic-eval {run.path}, or report --dynamic, "
                "makes the gradient statistics that it needs"
            )
        subject.passage, subject.settings = read(adaptation=(statistics, settings)), settings
    if subject.passage is None:
        subject.passage = read()
