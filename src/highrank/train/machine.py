"""Where a stage runs, who shares its work, and who watches."""

from dataclasses import dataclass

import torch

from highrank.progress import SILENT, Display
from highrank.workers import ALONE, Workers

__all__ = ["ON_THE_CPU", "Machine"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """Where and how a stage runs: nothing here changes its result, but for the rounding of sums over workers."""

    device: torch.device = CPU
    checkpoint_every_s: float = 600.0
    display: Display = SILENT
    workers: Workers = ALONE


ON_THE_CPU = Machine()
