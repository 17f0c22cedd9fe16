"""Which targets count, and which are wrong."""

import torch
from torch import Tensor

__all__ = ["sort_targets"]


def sort_targets(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The targets (N) with 0 in the place of what is no class; which count; which of these are wrong.

    Raises ValueError for a wrong one on a CPU. Elsewhere to look at a value would make the host wait, under
    ``torch.func`` there is a batch of them, and a compiler cannot look: then the losses and gradients of the tokens
    that are told to be wrong have to become NaN.
    """
    counts = target != ignore_index
    in_range = (target >= 0) & (target < num_classes)
    wrong = counts & ~in_range
    seen = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if seen and not torch._C._functorch.is_functorch_wrapped_tensor(target) and bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        raise ValueError(
            f"target: expected values from 0 to {num_classes - 1} (or ignore_index {ignore_index}), "
            f"got {int(target[first])} at position {first} of the flattened target"
        )
    return target.where(in_range, 0), counts, wrong
