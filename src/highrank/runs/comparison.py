"""Runs side by side: the settings that differ, their figures, and whether their perplexities can be compared."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from highrank.data.vocabulary import Vocabulary
from highrank.errors import UserError
from highrank.runs.config import differing_settings
from highrank.runs.listing import DamagedRun, RunSummary, is_run, summarise
from highrank.runs.measured import (
    COMPONENTS_FILE,
    RANK_FILE,
    Components,
    RankFigures,
    is_of_this_model,
    read_components,
    read_rank,
)

__all__ = ["Comparison", "compare"]

Figures = TypeVar("Figures", RankFigures, Components)


@dataclass(frozen=True)
class Comparison:
    """``settings``: of each that differs, the value in every run. ``rank`` and ``components``: of each run, what was
    measured of the best model that it has now (None: nothing). ``obstacles``: what keeps their perplexities from being
    compared; ``notes``: what else to know."""

    runs: tuple[RunSummary, ...]
    settings: dict[str, list[Any]]
    rank: list[RankFigures | None]
    components: list[Components | None]
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]


def compare(paths: Sequence[Path]) -> Comparison:
    """Raises UserError for a folder that is no run, or a run of which the records are damaged."""
    runs = tuple(_whole(path) for path in paths)
    notes = _notes(runs)
    rank = [_measured(run.path, RANK_FILE, read_rank, notes) for run in runs]
    components = [_measured(run.path, COMPONENTS_FILE, read_components, notes) for run in runs]
    settings = differing_settings([run.config for run in runs])
    return Comparison(runs, settings, rank, components, tuple(_obstacles(runs)), tuple(notes))


def _measured(run: Path, name: str, read: Callable[[Path], Figures], notes: list[str]) -> Figures | None:
    path = run / name
    if not path.exists():
        return None
    try:
        figures = read(path)
    except UserError as error:
        notes.append(str(error))
        return None
    if not is_of_this_model(run, figures):
        notes.append(f"{path}: of another model than the run has now, left out")
        return None
    return figures


def _whole(path: Path) -> RunSummary:
    if not is_run(path):
        raise UserError(f"{path}: not a run folder (expected config.toml, run.json and vocabulary.txt in it)")
    found = summarise(path)
    if isinstance(found, DamagedRun):
        raise UserError(f"{path}: damaged: {found.problem}; see highrank doctor {path}")
    return found


def _obstacles(runs: Sequence[RunSummary]) -> list[str]:
    found = []
    vocabularies = [Vocabulary.load(run.path / "vocabulary.txt") for run in runs]
    if len({frozenset(vocabulary.words) for vocabulary in vocabularies}) > 1:
        sizes = _each(runs, [f"{len(vocabulary):,} words" for vocabulary in vocabularies])
        found.append(f"their vocabularies differ ({sizes})")
    if _differ(_text(run, "valid", "test") for run in runs):
        found.append(f"their validation or test texts differ ({_each(runs, [_named_text(run) for run in runs])})")
    return found


def _notes(runs: Sequence[RunSummary]) -> list[str]:
    found = []
    if _differ(_text(run, "train") for run in runs):
        found.append("they were not trained on the same text")
    if unknown := [str(run.path) for run in runs if not run.facts.get("corpus", {}).get("sha256")]:
        found.append(f"the text of {', '.join(unknown)} is not recorded")
    return found


def _text(run: RunSummary, *splits: str) -> str | None:
    """What tells a text from others; None where it is not recorded."""
    sha256 = run.facts.get("corpus", {}).get("sha256")
    data = run.config.data
    limit = data.train_tokens if splits == ("train",) else data.heldout_tokens
    return json.dumps([[sha256.get(split) for split in splits], limit]) if sha256 else None


def _named_text(run: RunSummary) -> str:
    limit = run.config.data.heldout_tokens
    return f"the first {limit:,} tokens of {run.corpus}" if limit else run.corpus


def _differ(texts: Iterable[str | None]) -> bool:
    return len(set(texts) - {None}) > 1


def _each(runs: Sequence[RunSummary], texts: Sequence[str]) -> str:
    return "; ".join(f"{run.path}: {text}" for run, text in zip(runs, texts, strict=True))
