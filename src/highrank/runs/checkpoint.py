"""Checkpoints: a folder each, complete or absent, with the model in safetensors and all else beside it.

checkpoint-00001106/model.safetensors   the weights being trained
                    state.safetensors   optimizer, averages, carried hidden states
                    state.json          position, trigger history, best, hashes of the files above and of itself
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from highrank.errors import UserError
from highrank.files import explained, file_sha256, new_folder
from highrank.reading import file_size, read_json
from highrank.runs.tensors import read_tensors, write_tensors

__all__ = ["Checkpoint", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 2  # 1 had no hash of state.json itself
KEPT = 2
TENSOR_FILES = ("model.safetensors", "state.safetensors")


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
        content["state_sha256"] = _state_sha256(content)
        (temporary / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step, passed over by a resume
    for old in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError if the checkpoint is incomplete, damaged or of another format."""
    if not (path / "state.json").exists():
        raise UserError(f"{path}: not a checkpoint, state.json is missing")
    state = read_json(path / "state.json")
    if state.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path}: written in format {state.get('format')!r}, this version of highrank reads format 1 and {FORMAT}"
        )
    if state["format"] == FORMAT and state.get("state_sha256") != _state_sha256(state):
        raise UserError(f"{path}: damaged, state.json is not what was written (its checksum differs)")
    hashes = state.get("sha256")
    if not isinstance(hashes, dict) or sorted(hashes) != sorted(TENSOR_FILES):
        raise UserError(f"{path}: damaged, state.json does not hold the hashes of {' and '.join(TENSOR_FILES)}")
    for name in TENSOR_FILES:
        file = path / name
        if not file.exists():
            raise UserError(f"{path}: incomplete, {name} is missing")
        file_size(file)  # a plain file, or an error
        if file_sha256(file) != hashes[name]:
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


def _state_sha256(state: Mapping[str, Any]) -> str:
    """Of all that state.json holds beside this hash; "" if it cannot be what was written."""
    try:
        content = json.dumps({name: value for name, value in state.items() if name != "state_sha256"}, sort_keys=True)
    except RecursionError:
        return ""
    return hashlib.sha256(content.encode()).hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint-*"), reverse=True)
