"""How the weights follow the gradient: SGD, written here, or PyTorch's AdamW and RMSProp."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from highrank.errors import UserError
from highrank.runs import Config

__all__ = ["SGD", "Optimizer", "TorchOptimizer", "make_optimizer"]

PREFIX = "optimizer."


class Optimizer(Protocol):
    """One step at a rate that the caller sets anew each time, and what a checkpoint needs to go on."""

    def step(self, lr: float) -> None:
        """Change the parameters by their gradients, which are not to be used after."""

    def named_tensors(self) -> dict[str, Tensor]:
        """The state as in a checkpoint: ``optimizer.KEY.PARAMETER``."""

    def put(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse. Raises UserError for a state that does not fit the parameters."""


def make_optimizer(model: nn.Module, config: Config) -> Optimizer:
    train = config.train
    if train.optimizer == "sgd":
        return SGD(model, train.weight_decay)
    return TorchOptimizer(model, train.optimizer, train.weight_decay)


class SGD:
    """w - lr (gradient + weight_decay w), without state.

    Not ``torch.optim.SGD``: its first use imports PyTorch's compiler, which takes as long as importing PyTorch.
    """

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self._parameters = list(model.parameters())
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        trained: list[Tensor] = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if self._weight_decay:
            torch._foreach_add_(gradients, trained, alpha=self._weight_decay)
        torch._foreach_add_(trained, gradients, alpha=-lr)

    def named_tensors(self) -> dict[str, Tensor]:
        return {}

    def put(self, saved: Mapping[str, Tensor]) -> None:
        """There is nothing to put."""


class TorchOptimizer:
    """AdamW (decay apart from the gradient) or RMSProp as Melis, Dyer, Blunsom 2018 (arXiv 1707.05589) used it: Adam
    without momentum, that is RMSProp with its second moment corrected for the start at zero."""

    def __init__(self, model: nn.Module, name: str, weight_decay: float) -> None:
        betas = {"adamw": (0.9, 0.99), "rmsprop": (0.0, 0.999)}[name]
        self._named_parameters = dict(model.named_parameters())
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    def step(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def named_tensors(self) -> dict[str, Tensor]:
        return {
            f"{PREFIX}{key}.{name}": value
            for name, parameter in self._named_parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }

    def put(self, saved: Mapping[str, Tensor]) -> None:
        """Set directly: ``load_state_dict`` would cast scalars to the parameters' dtype and change bits."""
        state: dict[str, dict[str, Any]] = {}
        for full_name, value in saved.items():
            if full_name.startswith(PREFIX):
                key, _, name = full_name.removeprefix(PREFIX).partition(".")
                state.setdefault(name, {})[key] = value
        if not state:
            return
        for name, parameter in self._named_parameters.items():
            values = state.get(name, {})
            shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if {key: value.shape for key, value in values.items()} != shapes:
                raise UserError(f"checkpoint: the optimizer's state of {name} is missing or does not fit it")
            self._optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in values.items()}
