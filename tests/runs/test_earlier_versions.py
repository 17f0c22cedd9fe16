"""A run that an earlier version made, without the settings that were added since, is as good as a new one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.processes import RECIPE, here
from highrank.errors import UserError
from highrank.runs import RunFolder, parse_config
from highrank.runs.config import read_whole_config, to_toml, to_whole_toml

ADDED = (
    "min_posterior",
    "partial_shuffle",
    "optimizer",
    "schedule",
    "warmup",
    "average_power",
)  # before files said how many they hold
SETTINGS = ["--set", "data.train_tokens=1500", "--set", "data.heldout_tokens=300", "--set", "train.epochs=2"]


def as_before(text: str, *without: str) -> str:
    """A configuration as a version wrote it that had no such settings, and did not say how many it had."""
    lines = [line for line in text.splitlines(keepends=True) if line.partition(" =")[0] not in without]
    return "".join(lines[1:])


@pytest.fixture(scope="module")
def whole(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = here("train", RECIPE, *SETTINGS, "--out", run, "--device", "cpu", "--data", small_text)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def old(whole: Path, tmp_path: Path) -> Path:
    run = tmp_path / "old"
    shutil.copytree(whole, run)
    config = run / "config.toml"
    config.write_text(as_before(config.read_text(), *ADDED))
    assert not any(name in config.read_text() for name in ("#", *ADDED))
    return run


def test_an_old_run_is_read_measured_compared_and_reported(old: Path, whole: Path, tmp_path: Path) -> None:
    assert RunFolder.open(old).config == RunFolder.open(whole).config
    for command in (
        ["evaluate", old, "--device", "cpu"],
        ["dynamic-eval", old, "--split", "valid", "--device", "cpu"],
        ["compare", old, whole],
        ["doctor", old],
        ["report", old, "--out", tmp_path / "old.html", "--words", "5", "--device", "cpu"],
    ):
        done = here(*command)
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    assert json.loads(here("compare", old, whole, "--json").stdout)["settings"] == {}
    [row] = json.loads(here("runs", old, "--json").stdout)["runs"]
    assert row["state"] == "finished"


def test_an_old_run_is_resumed_to_the_same_model_and_then_has_all_settings(
    old: Path, whole: Path, small_text: Path
) -> None:
    shutil.rmtree(old / "train")
    done = here("train", RECIPE, *SETTINGS, "--out", old, "--device", "cpu", "--data", small_text, "--resume")
    assert done.returncode == 0, done.stderr
    model = "train/model.safetensors"
    assert (old / model).read_bytes() == (whole / model).read_bytes()
    assert (old / "config.toml").read_bytes() == (whole / "config.toml").read_bytes()


def test_later_settings_of_an_old_run_can_be_changed(old: Path, small_text: Path) -> None:
    command = ["finetune", old, "--data", small_text, "--device", "cpu"]
    done = here(*command, "--set", "finetune.lr=3", "--set", "finetune.epochs=1")
    assert done.returncode == 0, done.stderr
    assert RunFolder.open(old).config.finetune.lr == 3.0


@pytest.mark.parametrize("marked", [True, False])
def test_a_file_cut_short_anywhere_is_refused_in_one_line(marked: bool, tmp_path: Path) -> None:
    config = parse_config(
        {"data": {"corpus": "penn"}}, source="test", overrides=["dynamic.lamb=0.5", "train.warmup=0.5"]
    )
    text = to_whole_toml(config) if marked else to_toml(config)
    path = tmp_path / "config.toml"
    for length in range(len(text) - len("\n")):
        path.write_text(text[:length])
        with pytest.raises(UserError, match=r"config\.toml: (cut short|not valid TOML): [^\n]+\Z"):
            read_whole_config(path)
    path.write_text(text)
    assert read_whole_config(path) == config


def test_a_setting_that_is_lost_or_of_a_later_version(tmp_path: Path) -> None:
    """The number at the end is that of the version that wrote the file, and what is there must be known."""
    text = to_whole_toml(parse_config({"data": {"corpus": "penn"}}, source="test"))
    path = tmp_path / "config.toml"
    number = int(re.findall(r"# (\d+) settings", text)[0])
    lacking = text.replace("clip = 0.25\n", "")
    path.write_text(lacking)
    with pytest.raises(UserError, match=f"cut short: {number - 1} of {number} settings are there"):
        read_whole_config(path)
    path.write_text(lacking.replace(f"# {number} ", f"# {number - 1} "))
    assert read_whole_config(path).train.clip == 0.25
    path.write_text(text.replace("clip = 0.25\n", "clip = 0.25\nclipp = 1\n"))
    with pytest.raises(UserError, match=r"unknown key train\.clipp"):
        read_whole_config(path)
