"""SGD that becomes averaged SGD: which one, when, and the weights that are evaluated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from highrank.errors import UserError

__all__ = ["averaged_weights", "averages", "is_stalled", "make_optimizer", "optimizer_tensors", "put_optimizer_tensors"]

AVERAGING_STATE = {"step", "eta", "mu", "ax"}  # what PyTorch's ASGD keeps of each parameter


def make_optimizer(model: nn.Module, lr: float, weight_decay: float, *, averaging: bool) -> torch.optim.Optimizer:
    """SGD, or averaged SGD that averages every step from now on (t0=0, lambd=0). The loop sets the rate of each step.

    PyTorch's ASGD applies the rate given for a step one step later, as it did for the paper: so it does here.
    """
    if averaging:
        return torch.optim.ASGD(model.parameters(), lr=lr, t0=0, lambd=0.0, weight_decay=weight_decay)
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def is_stalled(history: Sequence[float], loss: float, nonmono: int) -> bool:
    """The non-monotonic rule: ``loss`` is above the best of all but the last ``nonmono`` values before it."""
    return len(history) > nonmono and loss > min(history[:-nonmono])


def averages(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor] | None:
    """The averaged weights by name; None while nothing is averaged."""
    if not isinstance(optimizer, torch.optim.ASGD):
        return None
    state = optimizer.state
    return {name: state[p]["ax"] if p in state else p.detach() for name, p in model.named_parameters()}


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` has the averaged weights (if there are any); after, the weights being trained."""
    averaged = averages(optimizer, model)
    if averaged is None:
        yield
        return
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _put(model, averaged)
    try:
        yield
    finally:
        _put(model, trained)


@torch.no_grad()
def _put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``optimizer.KEY.PARAMETER``."""
    return {
        f"optimizer.{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def put_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse. Set directly: ``load_state_dict`` would cast scalars to the parameters' dtype and change bits."""
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, Any]] = {}
    for full_name, value in tensors.items():
        prefix, _, rest = full_name.partition(".")
        if prefix != "optimizer":
            continue
        key, _, name = rest.partition(".")
        if name not in parameters:
            raise UserError(f"checkpoint: optimizer state for an unknown parameter {name!r}")
        if value.shape not in ((), parameters[name].shape):
            raise UserError(f"checkpoint: optimizer state {key!r} of {name} does not fit its shape")
        state.setdefault(name, {})[key] = value.to(parameters[name].device)
    for name, values in state.items():
        if isinstance(optimizer, torch.optim.ASGD) and set(values) != AVERAGING_STATE:
            raise UserError(f"checkpoint: the optimizer's averages of {name} are not complete")
        optimizer.state[parameters[name]] = values
