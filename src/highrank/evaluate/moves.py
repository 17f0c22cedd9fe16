"""How the weights move in dynamic evaluation, by the rule that ``adaptation`` states."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RMSMoves"]

# Numbers of a piece of a matrix: few enough that the gradient of one stays in the processor's cache between the product
# that makes it and its use, so many that the calls do not count.
PIECE = 2**18

VECTOR = 16  # numbers, of 4 bytes or more: a cache line


class _Weight(NamedTuple):
    """A parameter, or some rows of one: now, as it was trained, lamb * decay, and lr / (RMS + epsilon)."""

    now: Tensor
    trained: Tensor
    decay: Tensor
    rate: Tensor


class RMSMoves:
    """The moves of parameters, each with its tensor of ``decays`` and of ``rates``.

    From ``begin`` to ``end`` the parameters are copies that move; then they are again the tensors that they were.
    What is asked for in between has happened when ``finish`` returns.
    """

    def __init__(self, parameters: Sequence[Tensor], decays: Sequence[Tensor], rates: Sequence[Tensor]) -> None:
        trained = [parameter.data for parameter in parameters]
        columns = (_together(trained), trained, _together(decays), _together(rates))
        self._weights = {parameter: _Weight(*tensors) for parameter, *tensors in zip(parameters, *columns, strict=True)}
        self._pieces = {
            parameter: _pieces(weight) for parameter, weight in self._weights.items() if parameter.dim() == 2
        }
        largest = max((piece.now.numel() for pieces in self._pieces.values() for piece in pieces), default=0)
        self._scratch = trained[0].new_empty(largest)
        self._whole: list[tuple[_Weight, Tensor]] = []
        self._factored: list[tuple[Tensor, Tensor, Tensor]] = []

    def begin(self) -> None:
        for parameter, weight in self._weights.items():
            parameter.data = weight.now

    def end(self) -> None:
        for parameter, weight in self._weights.items():
            parameter.data = weight.trained

    def along(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self._whole.extend((self._weights[p], gradient) for p, gradient in zip(parameters, gradients, strict=True))

    def matrix(self, weight: Tensor, left: Tensor, right: Tensor) -> None:
        self._factored.append((weight, left, right))

    def finish(self) -> None:
        """Both terms at the weights before the move: the gradients are known already, so one may follow the other."""
        whole, self._whole = self._whole, []
        weights, gradients = [weight for weight, _ in whole], [gradient for _, gradient in whole]
        torch._foreach_lerp_([w.now for w in weights], [w.trained for w in weights], [w.decay for w in weights])
        torch._foreach_addcmul_([w.now for w in weights], [w.rate for w in weights], gradients, value=-1)
        factored, self._factored = self._factored, []
        for weight, left, right in factored:
            pieces = self._pieces[weight]
            for piece, part in zip(pieces, left.split(len(pieces[0].now), dim=1), strict=True):
                # MKL takes longer to write a product than to fill with zeros and add it to them.
                gradient = self._scratch[: piece.now.numel()].view_as(piece.now).zero_().addmm_(part.t(), right)
                piece.now.lerp_(piece.trained, piece.decay).addcmul_(piece.rate, gradient, value=-1)

    def back(self, parameter: Tensor) -> None:
        """Towards the trained weights only."""
        weight = self._weights[parameter]
        weight.now.lerp_(weight.trained, weight.decay)

    def rows(self, parameter: Tensor, places_N: Tensor, gradients_NI: Tensor) -> None:
        """Against the gradients of some rows only; those of the same row are added up."""
        weight = self._weights[parameter]
        weight.now.index_add_(0, places_N, weight.rate[places_N] * gradients_NI, alpha=-1)


def _together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in one allocation."""
    sizes = [-(-tensor.numel() // VECTOR) * VECTOR for tensor in tensors]
    parts = tensors[0].new_empty(sum(sizes)).split(sizes)
    return [part[: tensor.numel()].view_as(tensor).copy_(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _pieces(weight: _Weight) -> list[_Weight]:
    """Of whole rows."""
    rows = max(1, PIECE // weight.now.shape[1])
    return [_Weight(*parts) for parts in zip(*(tensor.split(rows) for tensor in weight), strict=True)]
