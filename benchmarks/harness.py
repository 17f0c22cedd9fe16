"""What every benchmark shares: timing candidates in turn, peak memory in processes of their own, one JSON a run."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from highrank import __version__
from highrank.files import write_text

__all__ = ["in_turn", "peak_rss_bytes", "save", "summary"]

RESULTS = Path(__file__).parent / "results"


def in_turn(
    candidates: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call. The candidates run one after the other in every round, so that a busy minute hits all."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(warm_up + repeats):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number >= warm_up:
                times[name].append(time.perf_counter() - began)
    return times


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p20": 0.2, "p80": 0.8}
    quantiles = {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}
    return {"median_s": statistics.median(ordered), **{f"{name}_s": value for name, value in quantiles.items()}}


def peak_rss_bytes(call: Callable[[], object]) -> int:
    """The largest resident size of a fresh process that makes this call (a picklable one) and nothing else. Linux."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(call, sender))
    process.start()
    try:
        return int(receiver.recv())
    finally:
        process.join()


def _report_peak(call: Callable[[], object], sender: Any) -> None:
    call()
    # Not getrusage: on Linux a new process begins with its parent's maximum.
    status = Path("/proc/self/status").read_text()
    sender.send(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write results/NAME.json with all that is needed to judge and repeat the run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    about = {
        "command": " ".join(["python", "-m", f"benchmarks.{name.partition('.')[0]}", *sys.argv[1:]]),
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"highrank": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps({"about": about, **result}, indent=2) + "\n")
    return path


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
