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
from highrank.files import explained, file_sha256, new_folder, remove_folder, set_aside, to_disk
from highrank.reading import file_size, read_json
from highrank.runs.records import checkpoint_folders
from highrank.runs.tensors import read_tensors, write_tensors
from highrank.runs.verify import written_differently

__all__ = ["Checkpoint", "checkpoint_folders", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 2  # 1 had no hash of state.json itself
KEPT = 2
TENSOR_FILES = ("model.safetensors", "state.safetensors")
STANDING = "it was removed again, and those before it stand. The disk, or what lies between, may be failing"


class Checkpoint(NamedTuple):
    path: Path
    model: dict[str, Tensor]
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of ``step``, read it back from the disk, and only then remove those before the last two.

    Until every byte was found as it was to be written, the new one has no name and nothing else is touched. Damaged
    ones do not count as one of the last two. Raises UserError: no space, no permission, or the disk gives back
    something else.
    """
    path = folder / f"checkpoint-{step:08d}"
    contents = dict(zip(TENSOR_FILES, (model, tensors), strict=True))
    replaced: Path | None = None
    with explained(path), new_folder(path) as temporary:
        for name, content in contents.items():
            write_tensors(temporary / name, content)
        all_state = {"format": FORMAT, "sha256": {name: file_sha256(temporary / name) for name in contents}, **state}
        text = json.dumps({**all_state, "state_sha256": _state_sha256(all_state)}, indent=1)
        (temporary / "state.json").write_text(text, encoding="utf-8")
        _read_back(path, temporary, contents, text)
        if path.exists():  # of the same step: from within the epoch that has ended now, or damaged and passed over
            replaced = set_aside(path)
    with explained(path):
        if replaced is not None:
            shutil.rmtree(replaced)
        _prune(folder, path)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError if the checkpoint is incomplete, damaged or of another format."""
    state = _checked_state(path)
    return Checkpoint(path, read_tensors(path / "model.safetensors"), read_tensors(path / "state.safetensors"), state)


def latest_checkpoint(folder: Path, *, notice: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None if there is none. Those passed over are named to ``notice``.

    Raises UserError if there are checkpoints and none can be read.
    """
    reason: UserError | None = None
    for path in checkpoint_folders(folder):
        try:
            return load_checkpoint(path)
        except UserError as error:
            reason = reason or error
            notice(f"passing over a checkpoint: {error}")
    if reason is not None:
        raise UserError(f"{folder}: no checkpoint can be read; the newest: {reason}")
    return None


def _read_back(path: Path, temporary: Path, contents: Mapping[str, Mapping[str, Tensor]], text: str) -> None:
    """Raises UserError, naming ``path``, if what the disk holds in ``temporary`` is not what was to be written."""
    for name, tensors in contents.items():
        if difference := written_differently(temporary / name, tensors):
            raise UserError(f"{path}: {name} is not on the disk as it was written ({difference}); {STANDING}")
    to_disk(temporary / "state.json")
    if (temporary / "state.json").read_bytes() != text.encode():
        raise UserError(f"{path}: state.json is not on the disk as it was written; {STANDING}")


def _prune(folder: Path, newest: Path) -> None:
    """Keep the newest, which was verified, and before it as many whole ones as are to be kept."""
    kept = 1
    for older in checkpoint_folders(folder):
        if older == newest:
            continue
        if kept < KEPT and older < newest and _is_whole(older):
            kept += 1
        else:
            remove_folder(older)


def _is_whole(path: Path) -> bool:
    try:
        _checked_state(path)
    except UserError:
        return False
    return True


def _checked_state(path: Path) -> dict[str, Any]:
    """state.json, once it and the files beside it have been found to be what was written."""
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
        raise UserError(f"{path}: damaged, state.json does not hold the checksums of {' and '.join(TENSOR_FILES)}")
    for name in TENSOR_FILES:
        file = path / name
        if not file.exists():
            raise UserError(f"{path}: incomplete, {name} is missing")
        file_size(file)  # a plain file, or an error
        if file_sha256(file) != hashes[name]:
            raise UserError(f"{path}: damaged, {name} is not what was written (its checksum differs)")
    return state


def _state_sha256(state: Mapping[str, Any]) -> str:
    """Of all that state.json holds beside this hash; "" if it cannot be what was written."""
    try:
        content = json.dumps({name: value for name, value in state.items() if name != "state_sha256"}, sort_keys=True)
    except RecursionError:
        return ""
    return hashlib.sha256(content.encode()).hexdigest()
