"""What a study is: variants of a recipe, the stages that each goes through, and the seeds. Read from a TOML file."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from highrank.errors import UserError
from highrank.reading import read_bytes
from highrank.runs import Config, find_recipe, read_config
from highrank.runs.config import nearest_spelling

__all__ = ["SECTIONS_OF", "Stage", "Study", "Trial", "Variant", "read_study", "settings_of"]

Stage = Literal["train", "finetune", "dynamic-eval"]
ORDERS: tuple[tuple[Stage, ...], ...] = (
    ("train",),
    ("train", "finetune"),
    ("train", "dynamic-eval"),
    ("train", "finetune", "dynamic-eval"),
)
# What of a configuration makes a difference to a stage, beside those before it.
SECTIONS_OF: dict[Stage, tuple[str, ...]] = {
    "train": ("data", "model", "dropout", "train"),
    "finetune": ("finetune",),
    "dynamic-eval": ("dynamic",),
}
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")  # of a folder, on any system
LIMIT_BYTES = 1 << 16


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One setting of the recipe: a name, what it is in a line, and ``section.key=value`` for what it changes."""

    name: str
    text: str
    overrides: list[str] = []


class StudyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``overrides`` are those of all variants; a variant's own come after them."""

    title: str
    recipe: str
    stages: list[Stage]
    seeds: list[int]
    variants: list[Variant]
    overrides: list[str] = []


@dataclass(frozen=True)
class Trial:
    """One variant with one seed: the unit of work, a run folder, and a row of the results."""

    variant: Variant
    seed: int
    recipe: str
    stages: tuple[Stage, ...]
    overrides: tuple[str, ...]  # all of them, the seed too

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed{self.seed}"

    @cached_property
    def config(self) -> Config:
        return read_config(find_recipe(self.recipe), overrides=self.overrides)


@dataclass(frozen=True)
class Study:
    """``name`` is that of its file, of its results, and by default of the folder of its runs."""

    name: str
    title: str
    recipe: str
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """What runs it, as a reader in the repository's folder would say it."""
        corpus = self.trials()[0].config.data.corpus
        return f"python -m benchmarks.study benchmarks/studies/{self.name}.toml --data {corpus} --out runs/{self.name}"

    def trial(self, variant: Variant, seed: int) -> Trial:
        overrides = (*self.overrides, *variant.overrides, f"train.seed={seed}")
        return Trial(variant, seed, self.recipe, self.stages, overrides)

    def trials(self, *, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Trial]:
        """In order of work: every variant once, then every variant with the next seed. Raises UserError for names
        and seeds that the study does not have."""
        names = [variant.name for variant in self.variants]
        for name in only:
            if name not in names:
                raise UserError(f"--only {name}: no such variant{nearest_spelling(name, names)}", exit_code=2)
        for seed in seeds:
            if seed not in self.seeds:
                known = ", ".join(map(str, self.seeds))
                raise UserError(f"--seeds {seed}: not a seed of the study, which has {known}", exit_code=2)
        return [
            self.trial(variant, seed)
            for seed in self.seeds
            if not seeds or seed in seeds
            for variant in self.variants
            if not only or variant.name in only
        ]


def read_study(path: Path) -> Study:
    """Raises UserError of one line for whatever is wrong with it, the settings of its variants included."""
    try:
        values = tomllib.loads(read_bytes(path, LIMIT_BYTES).decode())
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid TOML: {' '.join(str(error).split())}", exit_code=2) from error
    try:
        file = msgspec.convert(values, StudyFile)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}", exit_code=2) from error
    stages = _known_order(path, file.stages)
    _check_lists(path, file)
    study = Study(
        path.stem, file.title, file.recipe, stages, tuple(file.seeds), tuple(file.variants), tuple(file.overrides)
    )
    for trial in study.trials():
        try:
            assert trial.config.train.seed == trial.seed
        except UserError as error:
            raise UserError(f"{path}: variant {trial.variant.name}: {error}", exit_code=2) from error
    return study


def settings_of(config: Config, stages: Sequence[Stage]) -> dict[str, Any]:
    """The sections of a configuration that make a difference to these stages, as they are written into results."""
    values = msgspec.to_builtins(config)
    return {section: values[section] for stage in stages for section in SECTIONS_OF[stage]}


def _known_order(path: Path, stages: list[Stage]) -> tuple[Stage, ...]:
    if tuple(stages) not in ORDERS:
        expected = "; ".join(", ".join(order) for order in ORDERS)
        raise UserError(f"{path}: stages: expected one of: {expected}; got {', '.join(stages) or 'none'}", exit_code=2)
    return tuple(stages)


def _check_lists(path: Path, file: StudyFile) -> None:
    names = [variant.name for variant in file.variants]
    for what, values in (("seeds", file.seeds), ("variants", names)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{path}: {what}: expected at least one and each once, got {values}", exit_code=2)
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(
                f"{path}: variant {name!r}: expected a name of small letters, digits, dots and hyphens", exit_code=2
            )
    for override in [*file.overrides, *(each for variant in file.variants for each in variant.overrides)]:
        if override.replace(" ", "").startswith("train.seed="):
            raise UserError(f"{path}: {override}: the seeds of a study stand in its list of seeds", exit_code=2)
