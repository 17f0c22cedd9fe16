"""What the tests of a GPU are skipped without."""

import pytest
import torch

from highrank.ops import triton

__all__ = ["compiled", "on_a_gpu"]

NO_TRITON = triton.cannot_run(torch.device("cuda")) if torch.cuda.is_available() else "no GPU"

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # cuDNN copies weights that are not in one flat buffer, as the dropped ones are, and says so.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]
compiled = pytest.mark.skipif(NO_TRITON is not None, reason=f"triton: {NO_TRITON}")
