"""The paper's dropouts. Each is off in evaluation and draws from its own generator, which ``seed_dropouts`` places.

They differ in what shares a mask: a word type (embedding), a sequence (locked), a matrix for one call (DropConnect).
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from highrank.random import derived_seed, torch_generator

__all__ = ["Dropout", "EmbeddingDropout", "LockedDropout", "WeightDropout", "seed_dropouts"]


class Dropout(nn.Module):
    """Zeroes with probability ``p`` in training and scales the rest by 1 / (1 - p); ``forward`` says what is shared."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: expected a probability from 0 to below 1, got {p}")
        self.p = p
        self.generator: torch.Generator | None = None

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """False with probability p, else True. On a CPU p is rounded down to a multiple of 2**-16."""
        if device.type == "cpu":
            # A CPU draws one number after the other, and 64 bits in little more time than a float: enough for four.
            count = math.prod(shape)
            words = torch.empty(-(-count // 4), dtype=torch.int64)
            words.random_(-(2**63), None, generator=self.generator)
            return words.view(torch.int16)[:count].view(shape) >= int(self.p * 2**16) - 2**15
        # In half precision the numbers would be too few for p.
        return torch.empty(shape, dtype=torch.float32, device=device).uniform_(generator=self.generator) >= self.p

    def scale(self, like: Tensor) -> Tensor:
        """1 / (1 - p)."""
        return torch.ones((), dtype=like.dtype, device=like.device).div_(1 - self.p)

    def mask(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """``scale`` where ``kept``, else 0."""
        return self.kept(shape, like.device) * self.scale(like)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@final
class LockedDropout(Dropout):
    """One mask a sequence: (T, B, *) is masked alike at every time step. Source: Gal & Ghahramani 2016.

    Time comes first: of (B, T, *) each time step would have its own mask, the same for all sequences.
    """

    def forward(self, sequence: Tensor) -> Tensor:
        if not self.active:
            return sequence
        return sequence * self.mask((1, *sequence.shape[1:]), sequence)


@final
class EmbeddingDropout(Dropout):
    """Whole words: every occurrence of a word type in the batch is dropped, or none. Source: Gal & Ghahramani 2016."""

    def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
        embedded = nn.functional.embedding(tokens, weight)
        if not self.active:
            return embedded
        # A mask on the looked-up rows is a mask on the matrix, without touching V * D numbers.
        mask_V1 = self.mask((weight.shape[0], 1), weight)
        return embedded * mask_V1[tokens]


@final
class WeightDropout(Dropout):
    """DropConnect: single weights of a matrix, one mask a call. Source: Wan et al. 2013, Merity et al. 2017."""

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight
        # Not by ``mask``: the backward pass keeps what is multiplied with, and a truth value is a quarter of a number.
        return (weight * self.kept(tuple(weight.shape), weight.device)).mul_(self.scale(weight))


def seed_dropouts(model: nn.Module, seed: int, step: int, micro_batch: int) -> None:
    """Place every dropout of ``model`` that is on at (seed, its name, step, micro_batch).

    One that was never placed draws from PyTorch's own generator. A dropout keeps its generator, from which a recording
    of its model may draw.
    """
    device = next(model.parameters()).device
    for name, module in model.named_modules():
        if isinstance(module, Dropout) and module.active:
            position = (seed, f"dropout:{name}", step, micro_batch)
            if module.generator is None or module.generator.device.type != device.type:
                module.generator = torch_generator(device, *position)
            else:
                module.generator.manual_seed(derived_seed(*position))
