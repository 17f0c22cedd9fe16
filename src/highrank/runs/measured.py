"""What was measured of a run, rank.json and components.json: checked, because anyone may have written them."""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from highrank.errors import UserError
from highrank.files import file_sha256
from highrank.reading import read_json
from highrank.runs.records import best_model_path

__all__ = [
    "COMPONENTS_FILE",
    "RANK_FILE",
    "Components",
    "EntropyBand",
    "GainBand",
    "RankFigures",
    "checked",
    "checked_components",
    "checked_rank",
    "is_of_this_model",
    "read_components",
    "read_rank",
]

RANK_FILE, COMPONENTS_FILE = "rank.json", "components.json"
Figures = TypeVar("Figures", bound=msgspec.Struct)


class RelativeRank(msgspec.Struct):
    relative_threshold: float
    rank: int


class RankFigures(msgspec.Struct):
    """What ``highrank rank`` found. ``bound``: the highest rank of the head; None for a mixture of softmaxes."""

    format: Literal[1]
    stage: str
    split: str
    model_sha256: str
    head: str
    num_components: int
    context_features: int
    contexts: int
    vocabulary: int
    numerical_rank: int
    threshold: float
    effective_rank: float
    mean_kl_nats: float
    ranks: list[RelativeRank]
    dtype: str
    device: str
    singular_values: list[float]
    bound: int | None = None


class PreferredWord(msgspec.Struct):
    word: str
    log_ratio: float


class Component(msgspec.Struct):
    component: int
    mean_prior: float
    mean_posterior: float
    dead: bool
    most_likely: float
    loss_nats: float
    words: list[PreferredWord]


class Quantile(msgspec.Struct):
    quantile: float
    nats: float


# ``from`` is no name in Python.
class EntropyBand(msgspec.Struct, rename={"start": "from", "end": "to"}):
    start: float
    end: float | None
    tokens: int
    mean_nats: float


class GainBand(msgspec.Struct, rename={"start": "from", "end": "to"}):
    start: float
    end: float | None
    tokens: int
    gain_nats: float


class PriorEntropy(msgspec.Struct):
    mean_nats: float
    largest_nats: float
    quantiles: list[Quantile]
    by_line_position: list[EntropyBand] = []


class PosteriorEntropy(msgspec.Struct):
    mean_nats: float


class Posterior(msgspec.Struct):
    sorted_mean: list[float]


class Divergence(msgspec.Struct):
    mean_nats: list[list[float]]
    information_nats: float
    contexts: int


class Gain(msgspec.Struct):
    gain_nats: float
    loss_nats: float
    by_target_frequency: list[GainBand] = []
    component: int | None = None
    run: str | None = None
    stage: str | None = None
    head: str | None = None


class Gains(msgspec.Struct):
    best_component: Gain
    likeliest_component: Gain
    control: Gain | None = None


class Components(msgspec.Struct):
    """What ``highrank components`` found. ``dead``: components that are not used."""

    format: Literal[1]
    stage: str
    split: str
    model_sha256: str
    num_components: int
    tokens: int
    loss_nats: float
    dead: list[int]
    components: list[Component]
    prior_entropy: PriorEntropy
    posterior_entropy: PosteriorEntropy
    posterior: Posterior
    divergence: Divergence
    gain: Gains


def read_rank(path: Path) -> RankFigures:
    """Raises UserError if the file cannot be read or is not what highrank rank writes."""
    return checked_rank(read_json(path), path)


def checked_rank(figures: dict[str, Any], path: Path) -> RankFigures:
    """What stands in the file ``path``, or would."""
    found = checked(figures, RankFigures, path)
    values = found.singular_values
    if not values or values[0] <= 0 or min(values) < 0 or min(found.contexts, found.context_features) < 1:
        raise UserError(f"{path}: damaged: expected singular values, the largest first, and sizes of at least 1")
    return found


def read_components(path: Path) -> Components:
    """Raises UserError if the file cannot be read or is not what highrank components writes."""
    return checked_components(read_json(path), path)


def checked_components(figures: dict[str, Any], path: Path) -> Components:
    """What stands in the file ``path``, or would."""
    found = checked(figures, Components, path)
    count = found.num_components
    sizes = (len(found.components), len(found.posterior.sorted_mean), *map(len, found.divergence.mean_nats))
    if count < 1 or sizes != (count,) * (count + 2):
        raise UserError(f"{path}: damaged: expected figures of {count} components")
    return found


def checked(values: dict[str, Any], kind: type[Figures], source: Path) -> Figures:
    try:
        json.dumps(values, allow_nan=False)  # Python's reader takes NaN and infinities, which no plot can show
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: damaged: {error}") from error


def is_of_this_model(run: Path, figures: RankFigures | Components, stage: str | None = None) -> bool:
    """Were they measured on the best model that the run has now (of ``stage``, if given)?"""
    path = best_model_path(run, figures.stage)
    of_stage = stage is None or stage == figures.stage
    return of_stage and path.is_file() and file_sha256(path) == figures.model_sha256
