"""A run: its configuration, its folder, its checkpoints, the model that they describe.

Names are imported on first use: what a run says about itself is read without waiting for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from highrank.runs.build import build_model, parameter_count
    from highrank.runs.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
    from highrank.runs.config import Config, parse_config, read_config, to_toml
    from highrank.runs.cost import estimate
    from highrank.runs.device import choose_device, describe_device
    from highrank.runs.folder import ModelStamp, RunFolder, TrainedModel, load
    from highrank.runs.lock import at_work, writing
    from highrank.runs.recipes import find_recipe, recipe_names
    from highrank.runs.records import STAGES

__all__ = [
    "STAGES",
    "Checkpoint",
    "Config",
    "ModelStamp",
    "RunFolder",
    "TrainedModel",
    "at_work",
    "build_model",
    "choose_device",
    "describe_device",
    "estimate",
    "find_recipe",
    "latest_checkpoint",
    "load",
    "load_checkpoint",
    "parameter_count",
    "parse_config",
    "read_config",
    "recipe_names",
    "save_checkpoint",
    "to_toml",
    "writing",
]

_HOME = {
    "build": ("build_model", "parameter_count"),
    "checkpoint": ("Checkpoint", "latest_checkpoint", "load_checkpoint", "save_checkpoint"),
    "config": ("Config", "parse_config", "read_config", "to_toml"),
    "cost": ("estimate",),
    "device": ("choose_device", "describe_device"),
    "folder": ("ModelStamp", "RunFolder", "TrainedModel", "load"),
    "lock": ("at_work", "writing"),
    "recipes": ("find_recipe", "recipe_names"),
    "records": ("STAGES",),
}


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"highrank.runs.{module}"), name)
    raise AttributeError(f"module 'highrank.runs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
