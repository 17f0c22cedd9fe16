"""A run: its configuration, its folder, its checkpoints, the model that they describe."""

from highrank.runs.build import build_model, parameter_count
from highrank.runs.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from highrank.runs.config import Config, parse_config, read_config, to_toml
from highrank.runs.device import choose_device, describe_device
from highrank.runs.estimate import estimate
from highrank.runs.folder import STAGES, RunFolder, TrainedModel, load
from highrank.runs.lock import at_work, writing
from highrank.runs.recipes import find_recipe, recipe_names

__all__ = [
    "STAGES",
    "Checkpoint",
    "Config",
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
