"""The average of the weights of all updates: when it starts, how it weighs them, and a model that has it for a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from highrank.errors import UserError

__all__ = ["WeightAverage", "averaged_weights", "is_stalled"]

PREFIX = "average."


def is_stalled(history: Sequence[float], loss: float, nonmono: int) -> bool:
    """The non-monotonic rule: ``loss`` is above the best of all but the last ``nonmono`` values before it."""
    return len(history) > nonmono and loss > min(history[:-nonmono])


class WeightAverage:
    """Polynomial-decay average: the k-th weights count about k^power. Power 0 is the even average of the paper.

    Like PyTorch's ASGD, which trained the paper's models, it leaves out the first weights that it is given: the second
    ones take their place. Source: Shamir and Zhang 2013 (arXiv 1212.1824), section 4, with their eta as the power.
    """

    def __init__(self, model: nn.Module, power: float) -> None:
        self.power = power
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def add(self, count: int) -> None:
        """The model's present weights, which are the ``count``-th (from 1)."""
        place = max(1, count - 1)
        torch._foreach_lerp_(list(self.tensors.values()), self._parameters, (self.power + 1) / (self.power + place))

    def named_tensors(self) -> dict[str, Tensor]:
        """As in a checkpoint: ``average.PARAMETER``."""
        return {PREFIX + name: tensor for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def put(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse. Raises UserError if an average is missing or of another shape than its parameter."""
        for name, tensor in self.tensors.items():
            value = saved.get(PREFIX + name)
            if value is None or value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise UserError(f"checkpoint: the average of {name} is missing or does not fit it")
            tensor.copy_(value)


@contextmanager
def averaged_weights(average: WeightAverage | None, model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` has the averaged weights (if there are any), and the average those being trained; after, each
    has its own again."""
    if average is None:
        yield
        return
    _swap(model, average)
    try:
        yield
    finally:
        _swap(model, average)


def _swap(model: nn.Module, average: WeightAverage) -> None:
    """Each parameter and its average change their memory: nothing is copied."""
    pairs = [(name, parameter, average.tensors[name]) for name, parameter in model.named_parameters()]
    for name, parameter, other in pairs:  # all are there
        parameter.data, average.tensors[name] = other, parameter.data
