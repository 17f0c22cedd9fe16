"""Named tensors in safetensors files: reading one never runs code, and a damaged one is one clear line."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from highrank.errors import UserError

__all__ = ["model_tensors", "put_model_tensors", "read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name; a tied one appears once, under its first name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def put_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy ``tensors`` into the parameters of ``model``. Raises UserError where names or shapes differ."""
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
        with torch.no_grad():
            parameter.copy_(tensors[name])
