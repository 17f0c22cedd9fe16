"""What has to be said to the libraries beneath PyTorch before they are loaded. Importing this says it."""

import os

__all__ = ["DEFAULTS"]

DEFAULTS = {
    # Threads that wait for one another spin by default, GNU's for milliseconds: beside two busy programs that is the
    # slowest way for a small model. Asleep at once they must be woken at every operation. So they look a thousand
    # times, some microseconds, and then sleep (benchmarks/bench_waiting_threads.py).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
    # Large tensors in pages of 2 MiB where the kernel gives them on request: a step's temporaries are new memory each
    # time, with a page fault for every 4 KiB of it. benchmarks/bench_train_step.py has the textbook with and without.
    "THP_MEM_ALLOC_ENABLE": "1",
    # cuDNN's LSTM repeats its bits only with this (PyTorch's notes on randomness).
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

# Who says how threads wait means it, and a count would have the last word.
given = {"GOMP_SPINCOUNT"} if "OMP_WAIT_POLICY" in os.environ else set()
for name in DEFAULTS.keys() - given:
    os.environ.setdefault(name, DEFAULTS[name])
