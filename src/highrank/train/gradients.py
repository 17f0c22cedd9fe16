"""The gradient of an update as the sum over its micro-batches, whoever computed them.

float32 gradients are summed in float64, where the sum of a few is exact but for numbers that are 2**29 times smaller
than others in it. So the order does not matter: one worker and three end with the same bits, where sums in float32
would drift apart at the paper's learning rates (benchmarks/workers_agree.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from highrank.workers import Workers

__all__ = ["GradientSum"]

BLOCK = 1 << 17  # numbers that are turned into float64 at once: they stay in the processor's cache


@final
class GradientSum:
    """The sum of the gradients of ``model`` over several backward passes and over workers. 8 bytes a parameter."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._sums = {p: torch.empty_like(p, dtype=torch.float64).flatten() for p in self._parameters}

    @contextmanager
    def one_pass(self, workers: Workers, *, first: bool, last: bool) -> Iterator[None]:
        """Inside, one backward pass. After the last one of each worker ``grad`` holds the sum over all passes.

        A parameter's sum is sent as soon as it is complete, while the last pass goes on. One reduction a parameter,
        always the same ones: how DistributedDataParallel packs them is another at its first step than later.
        """
        sent: list[Any] = []

        def collect(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total, gradient = self._sums[parameter], parameter.grad.flatten()  # type: ignore[index]
            parameter.grad = None
            if first:
                total.copy_(gradient)
            elif total.is_cuda:
                total.add_(gradient)
            else:
                for part, addend in zip(total.split(BLOCK), gradient.split(BLOCK), strict=True):
                    part.add_(addend.double())
            if last:
                sent.append(workers.begin_adding_up(total))

        hooks = [parameter.register_post_accumulate_grad_hook(collect) for parameter in self._parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if last:
            assert len(sent) == len(hooks)  # or else the others wait for a gradient that never comes
            workers.finish(sent)
            for parameter in self._parameters:
                parameter.grad = _rounded_in_place(self._sums[parameter], parameter.dtype).view_as(parameter)


def _rounded_in_place(total: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers in ``dtype``, at the beginning of their own memory: the next pass writes over all of it."""
    if dtype == total.dtype:
        return total
    rounded = total.view(dtype)[: len(total)]
    step = max(1, len(total)) if total.is_cuda else BLOCK
    for first in range(0, len(total), step):  # what has been read is longer than what is written
        rounded[first : first + step] = total[first : first + step].to(dtype)
    return rounded
