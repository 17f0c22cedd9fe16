"""What has to be said to the libraries beneath PyTorch before they are loaded. Importing this says it."""

import os

__all__ = ["DEFAULTS"]

DEFAULTS = {
    # Threads that wait for one another spin by default: with another program on a core, a small model then trains 25
    # times slower than with waiting threads asleep (measured on 2 cores, docs/recipes.md).
    "OMP_WAIT_POLICY": "PASSIVE",
    # Large tensors in pages of 2 MiB where the kernel gives them on request: a step's temporaries are new memory each
    # time, with a page fault for every 4 KiB of it. benchmarks/bench_train_step.py has the textbook with and without.
    "THP_MEM_ALLOC_ENABLE": "1",
    # cuDNN's LSTM repeats its bits only with this (PyTorch's notes on randomness).
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
