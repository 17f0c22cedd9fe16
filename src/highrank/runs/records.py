"""What a run folder says about itself, checked as it is read. Without PyTorch, which a listing could not wait for.

run.json  metrics.jsonl  results.json       beside config.toml, which ``config`` reads
train/  finetune/                           of the best model only its sizes, of checkpoints only where they stand
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import msgspec
import safetensors

from highrank.errors import UserError
from highrank.reading import check_safetensors_header, file_size, read_json
from highrank.runs.config import Config

__all__ = [
    "STAGES",
    "STAGE_TITLES",
    "Facts",
    "Result",
    "Standing",
    "TemperedResult",
    "best_model_path",
    "cannot_go_on",
    "checkpoint_folders",
    "corpus_name",
    "has_ended",
    "metrics_lines",
    "metrics_record",
    "model_size",
    "read_facts",
    "read_metrics",
    "read_results",
    "read_standing",
]

STAGES = ("train", "finetune")
STAGE_TITLES = {"train": "trained", "finetune": "fine-tuned", "dynamic": "dynamic evaluation"}  # of results
LONGEST_RECORD_BYTES = 1 << 16

Records = TypeVar("Records")


class CorpusFacts(TypedDict, total=False):
    name: str
    as_published: bool
    folder: str
    sha256: dict[str, str]
    tokens: dict[str, int]


class Facts(TypedDict, total=False):
    """What is read again of run.json. Of ``Any``: what is only shown."""

    created: Any
    command: Any
    versions: Any
    machine: Any
    corpus: CorpusFacts


class SplitResult(TypedDict, total=False):
    perplexity: float


class TemperedResult(TypedDict):
    """What is read again of a stage evaluated at a temperature."""

    temperature: float
    tuned_on: NotRequired[str | None]
    train: NotRequired[SplitResult]
    valid: NotRequired[SplitResult]
    test: NotRequired[SplitResult]


class Result(TypedDict, total=False):
    """What is read again of a stage, or of the dynamic evaluation of the best model of ``stage``, in results.json."""

    train: SplitResult
    valid: SplitResult
    test: SplitResult
    tempered: TemperedResult
    cache: dict[str, Any]
    valid_perplexity: float
    epochs: int
    updates: int
    elapsed_s: float
    stage: str
    settings: dict[str, Any]
    statistics_batch: int


class Standing(TypedDict):
    """Where a stage stands, as its newest checkpoint has it. ``step`` counts updates."""

    epoch: int
    step: int
    finished: bool
    elapsed_s: float


class CheckpointState(TypedDict):
    position: Standing


def best_model_path(run: Path, stage: str) -> Path:
    return run / stage / "model.safetensors"


def checkpoint_folders(folder: Path) -> list[Path]:
    """Those of a stage, newest first, whatever is in them."""
    return sorted(folder.glob("checkpoint-*"), reverse=True)


def read_standing(run: Path, stage: str) -> Standing | None:
    """Of the newest checkpoint that says it; None without one. The tensors beside it are not looked at."""
    for folder in checkpoint_folders(run / stage):
        with contextlib.suppress(UserError):
            return _read_checked(folder / "state.json", CheckpointState)["position"]
    return None


def has_ended(run: Path, stage: str) -> bool:
    """Has the stage come to its end? Then what it learned, and what was measured of it, is of the settings it had."""
    if not best_model_path(run, stage).exists():  # it was removed, to be begun anew
        return False
    standing = read_standing(run, stage)
    # A kill may fall between the last checkpoint and the result; and checkpoints may be removed to save space.
    return (standing is not None and standing["finished"]) or "valid_perplexity" in read_results(run).get(stage, {})


def cannot_go_on(run: Path, stage: str, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a stage that has a model and has not ended has nothing to go on from; ``records`` are those of the run."""
    if not best_model_path(run, stage).exists() or has_ended(run, stage) or checkpoint_folders(run / stage):
        return None
    epochs = [record["epoch"] for record in records if record["stage"] == stage]
    if not epochs:
        return f"has a model but no checkpoint of {stage} to go on from (an imported run?)"
    if max(epochs) > 1:  # in the first one a kill may have come before there was any
        return (
            f"is in epoch {max(epochs)} of {stage}, but no checkpoint is there to go on from (were they removed?); put "
            f"one back, or to begin {stage} anew remove {run / stage}"
        )
    return None


def model_size(path: Path) -> int:
    """How many parameters the model in ``path`` has, from the head of the file. Raises UserError if that is damaged.

    As ``LanguageModel.num_parameters``, without the past decoder's.
    """
    try:
        check_safetensors_header(path)
        with safetensors.safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if not name.startswith("past_decoder.")]  # noqa: SIM118 - no mapping
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error


def read_facts(run: Path) -> Facts:
    """What run.json holds: versions, command, machine, corpus."""
    return _read_checked(run / "run.json", Facts)


def corpus_name(facts: Facts, config: Config) -> str:
    """Of the run's text, which need not be the one that its recipe is about."""
    return facts.get("corpus", {}).get("name") or config.data.corpus


def read_results(run: Path) -> dict[str, Result]:
    """What was measured at the end of each stage, by the stage's name, and of ``dynamic`` evaluation."""
    path = run / "results.json"
    return _read_checked(path, dict[str, Result]) if path.exists() else {}


def read_metrics(run: Path, *, progress_only: bool = False) -> list[dict[str, Any]]:
    """The records in metrics.jsonl, each with its stage, event, epoch and step.

    ``progress_only``: validations and the last record, which tell how far the run has come, in a tenth of the time.
    """
    lines = list(metrics_lines(run))
    if progress_only:  # of the last two, as one may be cut short
        lines = [line for place, line in enumerate(lines) if b'"validation"' in line or place >= len(lines) - 2]
    return [record for line in lines if (record := metrics_record(line)) is not None]


def metrics_lines(run: Path) -> Iterator[bytes]:
    """Those of metrics.jsonl, if it is there, each with its end; of one too long for a record nothing else."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    file_size(path)  # a plain file, or an error
    with path.open("rb") as file:
        while line := file.readline(LONGEST_RECORD_BYTES):
            piece = line
            while len(piece) == LONGEST_RECORD_BYTES and not piece.endswith(b"\n"):
                # No record is so long: this may be a gigabyte without an end of line, and is not kept.
                piece = file.readline(LONGEST_RECORD_BYTES)
                line = piece[-1:]
            yield line


def metrics_record(line: bytes) -> dict[str, Any] | None:
    """None for a line cut short by a kill: what it said is said again after the resume."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    types = {"stage": str, "event": str, "epoch": int, "step": int}
    whole = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in types.items())
    return record if whole else None


def _read_checked(path: Path, expected: type[Records]) -> Records:
    """The JSON object, all of it, where what is used again is of the types that ``expected`` says."""
    values = read_json(path)
    try:
        msgspec.convert(values, expected)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # half a character is no name for msgspec
        raise UserError(f"{path}: damaged: {error}") from error
    return cast(Records, values)
