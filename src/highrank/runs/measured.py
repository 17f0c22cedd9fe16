"""The headline figures of rank.json and components.json in a run folder, where they have been measured."""

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from highrank.errors import UserError
from highrank.files import file_sha256
from highrank.reading import read_json
from highrank.runs.records import best_model_path

__all__ = ["FILES", "ComponentFigures", "Figures", "RankFigures", "is_of_this_model", "read_measured"]


class RankFigures(msgspec.Struct, frozen=True):
    """Of rank.json. ``bound``: the highest rank that the head can have; None for a mixture of softmaxes."""

    stage: str
    split: str
    model_sha256: str
    contexts: int
    numerical_rank: int
    effective_rank: float
    bound: int | None = None
    mean_kl_nats: float | None = None


class Entropy(msgspec.Struct, frozen=True):
    mean_nats: float


class Gain(msgspec.Struct, frozen=True):
    gain_nats: float


class Gains(msgspec.Struct, frozen=True):
    best_component: Gain


class ComponentFigures(msgspec.Struct, frozen=True):
    """Of components.json. ``dead``: components that are not used; gain: of the mixture over its best component."""

    stage: str
    split: str
    model_sha256: str
    tokens: int
    dead: list[int]
    prior_entropy: Entropy
    posterior_entropy: Entropy
    gain: Gains


FILES = {RankFigures: "rank.json", ComponentFigures: "components.json"}
Figures = TypeVar("Figures", RankFigures, ComponentFigures)


def read_measured(run: Path, kind: type[Figures]) -> Figures | None:
    """None where nothing was measured. Raises UserError if the file is damaged."""
    path = run / FILES[kind]
    if not path.exists():
        return None
    try:
        figures = msgspec.convert(read_json(path), kind)
        json.dumps(msgspec.to_builtins(figures), allow_nan=False)
    except UserError:
        raise
    except ValueError as error:  # of another type, half a character, or no finite number
        raise UserError(f"{path}: damaged: {error}") from error
    return figures


def is_of_this_model(run: Path, figures: RankFigures | ComponentFigures) -> bool:
    """Were they measured on the best model that the run has now?"""
    path = best_model_path(run, figures.stage)
    return path.is_file() and file_sha256(path) == figures.model_sha256
