"""Tensors in files: what was written is read, or nothing is."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from highrank.errors import UserError
from highrank.runs.tensors import put_model_tensors, read_tensors, write_tensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(7),
    "c": torch.zeros(0, 4),
    "d": torch.ones(3, dtype=torch.bfloat16),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", TENSORS)
    read = read_tensors(tmp_path / "file")
    assert read.keys() == TENSORS.keys()
    assert all(read[name].dtype == TENSORS[name].dtype and read[name].equal(TENSORS[name]) for name in TENSORS)


def test_every_single_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    found = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            read = read_tensors(path)
        except UserError:
            found += 1
            continue
        assert {name: (t.dtype, t.tolist()) for name, t in read.items()} == {
            name: (t.dtype, t.tolist()) for name, t in TENSORS.items()
        }
    assert found > len(whole) // 2


def test_a_file_from_elsewhere_needs_no_hash(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "file")
    assert read_tensors(tmp_path / "file")["a"].equal(TENSORS["a"])
    safetensors.torch.save_file(TENSORS, tmp_path / "file", metadata={"format": "pt"})
    assert read_tensors(tmp_path / "file", from_elsewhere=True)["a"].equal(TENSORS["a"])
    with pytest.raises(UserError, match="the checksum differs"):  # ours, with a damaged name of the hash
        read_tensors(tmp_path / "file")


def test_a_header_that_claims_too_much_is_not_believed(tmp_path: Path) -> None:
    for length in (0, 1 << 20, 1 << 60, (1 << 64) - 1):
        (tmp_path / "file").write_bytes(length.to_bytes(8, "little") + b"{}" * 1000)
        with pytest.raises(UserError, match=f"a header of {length:,} bytes in a file of 2,008"):
            read_tensors(tmp_path / "file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_finite_numbers(value: float) -> None:
    model = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(UserError, match="weight holds values that are not finite"):
        put_model_tensors(model, {"weight": torch.tensor([[0.0, value], [0.0, 0.0]])}, source=Path("file"))
    with pytest.raises(UserError, match="weight holds values that are not finite floating-point"):
        put_model_tensors(model, {"weight": torch.ones(2, 2, dtype=torch.int32)}, source=Path("file"))
