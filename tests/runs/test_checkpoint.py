"""Checkpoints: whole or absent; one that is damaged is passed over, by name; old ones go last."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from highrank.errors import UserError
from highrank.files import leftovers
from highrank.runs import latest_checkpoint, load_checkpoint, save_checkpoint
from highrank.runs.checkpoint import checkpoint_folders
from highrank.runs.tensors import write_tensors
from highrank.runs.verify import written_differently

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor(7)}


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, {"w": torch.full((3,), float(step))}, TENSORS, {"position": {"step": step}})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path, 5))
    assert checkpoint.model["w"].tolist() == [5.0] * 3
    assert checkpoint.state["position"] == {"step": 5}
    assert all(checkpoint.tensors[name].equal(tensor) for name, tensor in TENSORS.items())


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        save(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-00000011", "checkpoint-00000100"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    whole = (newest / name).read_bytes()
    damages = [whole[:length] for length in (0, 1, 8, len(whole) // 2, len(whole) - 1)]
    if name != "state.json":
        damages.append(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    else:
        damages.append(whole.replace(b'"step": 2', b'"step": 3'))
    for damage in damages:
        (newest / name).write_bytes(damage)
        said: list[str] = []
        checkpoint = latest_checkpoint(tmp_path, notice=said.append)
        assert checkpoint is not None
        assert checkpoint.state["position"] == {"step": 1}
        assert len(said) == 1
        assert newest.name in said[0]
    (newest / name).unlink()
    with pytest.raises(UserError, match="missing"):
        load_checkpoint(newest)


def test_when_none_can_be_read(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path, notice=print) is None
    path = save(tmp_path, 3)
    (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        latest_checkpoint(tmp_path, notice=lambda text: None)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(UserError, match="format 99, this version of highrank reads format 1"):
        load_checkpoint(path)


def test_a_checkpoint_from_before_its_state_had_a_hash_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    del state["state_sha256"]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json is not what was written"):
        load_checkpoint(path)
    (path / "state.json").write_text(json.dumps(state | {"format": 1}))
    assert load_checkpoint(path).state["position"] == {"step": 3}


def test_no_other_file_is_opened(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    state = {"format": 1, "sha256": state["sha256"] | {"/dev/zero": "0" * 64}}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="does not hold the checksums of"):
        load_checkpoint(path)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    (path / "model.safetensors").write_bytes(b"")
    save(tmp_path, 4)
    assert load_checkpoint(path).state["position"] == {"step": 4}


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*arguments: object, **options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("highrank.runs.checkpoint.json.dumps", fail)
    with pytest.raises(UserError, match="no space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_a_checkpoint_folder_from_elsewhere_is_not_trusted(tmp_path: Path) -> None:
    source = save(tmp_path / "one", 1)
    target = tmp_path / "two" / "checkpoint-00000001"
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"incomplete, model\.safetensors is missing"):
        load_checkpoint(target)


def flip_a_bit(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["a bit", "cut short"])
def test_nothing_goes_until_the_new_one_was_read_back(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps something else than what it was given: hashes are taken of that, and would agree with it."""
    for step in (1, 2):
        save(tmp_path, step)

    def write_to_a_failing_disk(path: Path) -> None:
        if path.name == name and damage == "a bit":
            flip_a_bit(path)
        elif path.name == name:
            path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(
        f"highrank.runs.{'checkpoint' if name == 'state.json' else 'verify'}.to_disk", write_to_a_failing_disk
    )
    for step in (2, 3):  # of the same step too
        with pytest.raises(UserError, match=rf"checkpoint-0000000{step}: {name} is not on the disk as it was written"):
            save(tmp_path, step)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000001", "checkpoint-00000002"]
    monkeypatch.undo()
    found = latest_checkpoint(tmp_path, notice=pytest.fail)
    assert found is not None
    assert found.state["position"] == {"step": 2}


def test_what_is_written_is_compared_byte_by_byte(tmp_path: Path) -> None:
    """Not number by number: a nan is not equal to itself, and zero has two signs."""
    tensors = {"nan": torch.tensor([float("nan"), 0.0]), "scalar": torch.tensor(3), "empty": torch.zeros(0, 4)}
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, tensors)
    assert written_differently(path, tensors) is None
    assert "nan differs" in str(written_differently(path, tensors | {"nan": torch.tensor([float("nan"), -0.0])}))
    assert "shape or type" in str(written_differently(path, tensors | {"scalar": torch.tensor(3, dtype=torch.int32)}))
    assert "more" in str(written_differently(path, tensors | {"more": torch.zeros(1)}))


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip_a_bit(save(tmp_path, 2) / "model.safetensors")
    flip_a_bit(save(tmp_path, 9) / "state.safetensors")  # passed over by a resume, which went on from 1
    save(tmp_path, 3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-00000001", "checkpoint-00000003"]


def test_a_checkpoint_goes_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while one is being removed leaves no half of it under its own name."""
    for step in (1, 2):
        save(tmp_path, step)

    def die(path: Path, **options: object) -> None:
        if not path.exists():  # what a context manager cleans up behind itself
            return
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("highrank.files.shutil.rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-00000003", "checkpoint-00000002"]
    assert len(list(leftovers(tmp_path))) == 1
