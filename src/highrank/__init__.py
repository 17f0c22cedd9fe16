"""High-rank language models in PyTorch: output heads, a fused mixture loss, and the paper's recipe.

Names are imported on first use: ``import highrank`` costs nothing, and who wants a head never loads a trainer.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from highrank import evaluate as evaluate
    from highrank import functional as functional
    from highrank import heads as heads
    from highrank.evaluate.rank import Rank, rank
    from highrank.functional import LossOptions, mixture_cross_entropy, mixture_log_prob, mixture_statistics
    from highrank.heads import GrownMixture, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
    from highrank.runs import load

__version__ = "0.1.0.dev0"

__all__ = [
    "GrownMixture",
    "LossOptions",
    "MixtureOfContexts",
    "MixtureOfSoftmaxes",
    "Rank",
    "Softmax",
    "__version__",
    "load",
    "mixture_cross_entropy",
    "mixture_log_prob",
    "mixture_statistics",
    "rank",
]

_HOME = {
    "GrownMixture": "highrank.heads",
    "LossOptions": "highrank.functional",
    "MixtureOfContexts": "highrank.heads",
    "MixtureOfSoftmaxes": "highrank.heads",
    "Rank": "highrank.evaluate.rank",
    "Softmax": "highrank.heads",
    "load": "highrank.runs",
    "mixture_cross_entropy": "highrank.functional",
    "mixture_log_prob": "highrank.functional",
    "mixture_statistics": "highrank.functional",
    "rank": "highrank.evaluate.rank",
}


_MODULES = ("evaluate", "functional", "heads")  # whose names are public too


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name):
        if name in _MODULES:
            return importlib.import_module(f"highrank.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'highrank' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
