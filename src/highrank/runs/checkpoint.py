"""Checkpoints: a folder each, complete or absent, with the model in safetensors and all else beside it.

checkpoint-00001106/model.safetensors   the weights being trained
                    state.safetensors   optimizer, averages, carried hidden states
                    state.json          position, trigger history, best, sizes and hashes of the files above
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from highrank.errors import UserError
from highrank.files import explained, file_sha256, new_folder
from highrank.runs.tensors import read_tensors, write_tensors

__all__ = ["Checkpoint", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 1
KEPT = 2


class Checkpoint(NamedTuple):
    path: Path
    model: dict[str, Tensor]
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` and only then remove those before the last two."""
    path = folder / f"checkpoint-{step:08d}"
    with explained(path), new_folder(path) as temporary:
        write_tensors(temporary / "model.safetensors", model)
        write_tensors(temporary / "state.safetensors", tensors)
        hashes = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
        content = {"format": FORMAT, "sha256": hashes, **state}
        (temporary / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step, passed over by a resume
    for old in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError if the checkpoint is incomplete, damaged or of another format."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not a checkpoint, state.json is missing") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged, state.json is not JSON ({error})") from error
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path}: written in format {state.get('format')!r}, this version of highrank reads format {FORMAT}"
        )
    for name, expected in state["sha256"].items():
        file = path / name
        if not file.exists():
            raise UserError(f"{path}: incomplete, {name} is missing")
        if file_sha256(file) != expected:
            raise UserError(f"{path}: damaged, {name} is not what was written (its checksum differs)")
    return Checkpoint(path, read_tensors(path / "model.safetensors"), read_tensors(path / "state.safetensors"), state)


def latest_checkpoint(folder: Path, *, notice: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None if there is none. Those passed over are named to ``notice``.

    Raises UserError if there are checkpoints and none can be read.
    """
    reason: UserError | None = None
    for path in _checkpoints(folder):
        try:
            return load_checkpoint(path)
        except UserError as error:
            reason = reason or error
            notice(f"passing over a checkpoint: {error}")
    if reason is not None:
        raise UserError(f"{folder}: no checkpoint can be read; the newest: {reason}")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint-*"), reverse=True)
