"""Named tensors in safetensors files: reading one never runs code, and a damaged one is one clear line.

What is written here carries a hash of its tensors, which is checked when it is read; files from elsewhere need none.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from highrank.errors import UserError
from highrank.reading import check_safetensors_header

__all__ = ["model_tensors", "put_model_tensors", "read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, path, metadata={"sha256": _sha256(contiguous)})


def read_tensors(path: Path, *, from_elsewhere: bool = False) -> dict[str, Tensor]:
    """Raises UserError if there is no such file, it is damaged, or its tensors are not those that were written.

    Files ``from_elsewhere`` may have other metadata than ours; those of our first runs have none.
    """
    try:
        check_safetensors_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error
    ours = bool(metadata) and not from_elsewhere
    if (ours or "sha256" in metadata) and metadata.get("sha256") != _sha256(tensors):
        raise UserError(f"{path}: damaged, its tensors are not those that were written (the checksum differs)")
    return tensors


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha256.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name; a tied one appears once, under its first name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def put_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy ``tensors`` into the parameters of ``model``.

    Raises UserError where names or shapes differ, or a tensor holds anything but finite floating-point numbers.
    """
    parameters = dict(model.named_parameters())
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise UserError(f"{source}: no tensor {missing[0]!r}, which the run's configuration asks for")
    if surplus := sorted(tensors.keys() - parameters.keys()):
        raise UserError(f"{source}: unexpected tensor {surplus[0]!r}, which the run's configuration does not have")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, but configuration and vocabulary ask for "
                f"{tuple(parameter.shape)}"
            )
        if not tensors[name].is_floating_point() or not bool(tensors[name].isfinite().all()):
            raise UserError(f"{source}: {name} holds values that are not finite floating-point numbers")
        with torch.no_grad():
            parameter.copy_(tensors[name])
