"""Which targets are wrong."""

import torch
from torch import Tensor

__all__ = ["check_target"]


def check_target(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raises ValueError for one that is neither a class nor ``ignore_index``.

    On a CPU only: elsewhere to look at a value would make the host wait. Nor can one look at a batch under
    ``torch.func``.
    """
    if target.device.type != "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(target):
        return
    wrong = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    if bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        raise ValueError(
            f"target: expected values from 0 to {num_classes - 1} (or ignore_index {ignore_index}), "
            f"got {int(target[first])} at position {first} of the flattened target"
        )
