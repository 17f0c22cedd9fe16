"""What has to be said to the libraries beneath PyTorch before they are loaded. Importing this says it."""

import os
import time
from pathlib import Path

__all__ = ["BESIDE_OTHERS", "DEFAULTS", "others_compute"]

DEFAULTS = {
    # cuDNN's LSTM repeats its bits only with this (PyTorch's notes on randomness).
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

# Threads that wait for one another spin by default, GNU's for milliseconds. Nothing is faster for a small model, but
# beside two busy programs nothing is slower: what spins keeps a processor from the thread that it waits for. There they
# look a thousand times, some microseconds, and then sleep (benchmarks/bench_waiting_threads.py).
BESIDE_OTHERS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

LOOKS, APART_S = 3, 0.003


def others_compute(loadavg: Path = Path("/proc/loadavg")) -> bool:
    """Do other programs want the processors that our threads will use? False where the system does not say (it is Linux
    that does, and GNU's threads are those of Linux)."""
    if not hasattr(os, "sched_getaffinity"):
        return False
    processors = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    spare = max(0, processors - int(threads)) if threads.isdecimal() else 0
    try:
        others = []
        for look in range(LOOKS):  # what happens to run at one moment may be nothing the next
            time.sleep(APART_S if look else 0)
            runnable, _, _ = loadavg.read_text().split()[3].partition("/")
            others.append(int(runnable) - 1)  # without this one
    except (OSError, ValueError, IndexError):
        return False
    return sorted(others)[LOOKS // 2] > spare


for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
# Who says how threads wait means it.
if not BESIDE_OTHERS.keys() & os.environ.keys() and others_compute():
    os.environ |= BESIDE_OTHERS
