"""``highrank doctor``: each file of a run damaged in turn, what is said of it, and what can still be done."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.processes import RECIPE, here
from benchmarks.same_bits import checksums
from highrank.errors import UserError
from highrank.runs import at_work
from highrank.runs.checkpoint import _state_sha256, checkpoint_folders
from highrank.runs.doctor import Ability, Diagnosis, examine

SETTINGS = ["--set", "data.train_tokens=1500", "--set", "data.heldout_tokens=300", "--set", "train.epochs=2"]


@pytest.fixture(scope="module")
def whole(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, fine-tuned and evaluated dynamically, with two checkpoints of each stage."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    common = ["--device", "cpu", "--data", small_text]
    always = ["--checkpoint-minutes", "0"]
    for command in (
        ["train", RECIPE, *SETTINGS, "--out", run, *common, *always],
        ["finetune", run, *common, *always],
        ["dynamic-eval", run, "--split", "valid", *common],
    ):
        done = here(*command)
        assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def can(diagnosis: Diagnosis, what: str) -> Ability:
    return next(ability for ability in diagnosis.abilities if ability.what == what)


def newest(run: Path, stage: str = "train") -> Path:
    return checkpoint_folders(run / stage)[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # to open it would wait for ever


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As another program would write it: whole, its own checksum included."""
    content = json.loads(path.read_text())
    change(content)
    if "state_sha256" in content:
        content["state_sha256"] = _state_sha256(content)
    path.write_text(json.dumps(content))


def spoil(path: Path, value: float = float("nan")) -> None:
    tensors = load_file(path)
    tensors[sorted(tensors)[0]].reshape(-1)[0] = value
    save_file(tensors, path)


def test_a_whole_run_has_nothing_wrong_and_is_not_touched(run: Path) -> None:
    before, stamps = checksums(run), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = here("doctor", run)
    assert done.returncode == 0, done.stdout
    assert "nothing is wrong" in done.stdout
    assert "wrong  " not in done.stdout
    assert checksums(run) == before
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == stamps
    diagnosis = examine(run)
    assert {finding.kind for finding in diagnosis.findings} == {"ok"}
    assert "come to its end" in can(diagnosis, "train").why
    assert can(diagnosis, "evaluate").command == f"highrank evaluate {run} --data {can_data(diagnosis)}"


def can_data(diagnosis: Diagnosis) -> str:
    corpus = next(finding for finding in diagnosis.findings if finding.place == "corpus")
    return corpus.text.partition(":")[0]


def test_json_holds_the_same(run: Path) -> None:
    cut(run / "results.json")
    done = here("doctor", run, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["wrong"] == 1
    assert [entry["place"] for entry in found["findings"] if entry["kind"] == "wrong"] == ["results.json"]
    assert [entry["what"] for entry in found["can"]] == ["train", "finetune", "evaluate", "dynamic-eval"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str, tuple[str, ...]]] = {
    # what is done to the run; the place and the words of the finding; what then cannot be done
    "config cut": (
        lambda run: cut(run / "config.toml"),
        "config.toml",
        "TOML",
        ("train", "finetune", "evaluate", "dynamic-eval"),
    ),
    "config cut at a line's end": (
        lambda run: (run / "config.toml").write_text((run / "config.toml").read_text().partition("clip")[0]),
        "config.toml",
        "cut short",
        ("evaluate",),
    ),
    "config missing": (lambda run: (run / "config.toml").unlink(), "config.toml", "no such file", ("evaluate",)),
    "facts cut": (lambda run: cut(run / "run.json"), "run.json", "not valid JSON", ("train", "evaluate")),
    "facts of another kind": (lambda run: (run / "run.json").write_text("[]"), "run.json", "got list", ("evaluate",)),
    "facts without versions": (lambda run: (run / "run.json").write_text("{}"), "run.json", "versions", ("evaluate",)),
    "facts nested deeply": (
        lambda run: (run / "run.json").write_text('{"a": ' + "[" * 100_000),
        "run.json",
        "nested too deeply",
        ("train", "evaluate"),
    ),
    "facts in a pipe": (lambda run: replace_by_a_pipe(run / "run.json"), "run.json", "a pipe", ("train", "evaluate")),
    "vocabulary cut": (lambda run: cut(run / "vocabulary.txt"), "vocabulary.txt", "cut off", ("train", "evaluate")),
    "vocabulary empty": (lambda run: (run / "vocabulary.txt").write_text(""), "vocabulary.txt", "empty", ("evaluate",)),
    "vocabulary a word short": (
        lambda run: (run / "vocabulary.txt").write_text(
            (run / "vocabulary.txt").read_text().rpartition("\n")[0].rpartition("\n")[0] + "\n"
        ),
        "corpus",
        "vocabulary",
        ("train", "finetune", "evaluate", "dynamic-eval"),
    ),
    "text gone": (
        lambda run: rewrite(run / "run.json", lambda facts: facts["corpus"].update(folder="/no/such/folder")),
        "corpus",
        "--data",
        ("train", "evaluate"),
    ),
    "text changed": (
        lambda run: rewrite(run / "run.json", lambda facts: facts["corpus"]["sha256"].update(valid="0" * 64)),
        "corpus",
        "valid.txt has changed",
        ("train", "evaluate"),
    ),
    "best model cut": (
        lambda run: cut(run / "train/model.safetensors"),
        "train/model.safetensors",
        "damaged",
        ("train",),
    ),
    "best model not finite": (
        lambda run: spoil(run / "finetune/model.safetensors"),
        "finetune/model.safetensors",
        "not finite",
        ("finetune",),
    ),
    "best model missing": (
        lambda run: (run / "train/model.safetensors").unlink(),
        "train/model.safetensors",
        "is missing",
        ("train", "finetune"),
    ),
    "best model of another size": (
        lambda run: save_file({"w": np.zeros(3)}, run / "train/model.safetensors"),
        "train/model.safetensors",
        "no tensor '",
        ("train", "finetune"),
    ),
    "fine-tuning began from another model": (
        lambda run: spoil(run / "train/model.safetensors", 0.5),
        "finetune",
        "another trained model",
        ("finetune",),
    ),
    "metrics damaged": (
        lambda run: (run / "metrics.jsonl").write_text("}\n" + (run / "metrics.jsonl").read_text()),
        "metrics.jsonl",
        "line 1 is not a record",
        (),
    ),
    "a record whose step is no number": (
        lambda run: (run / "metrics.jsonl").write_text(
            re.sub(r'"step": \d+', '"step": "x"', (run / "metrics.jsonl").read_text(), count=1)
        ),
        "metrics.jsonl",
        "line 1 is not a record",
        (),
    ),
    "a line of the length of many records": (
        lambda run: (run / "metrics.jsonl").write_text("\n" * 2 + " " * (1 << 17) + "\n"),
        "metrics.jsonl",
        "line 3 is not a record",
        (),
    ),
    "metrics in a pipe": (lambda run: replace_by_a_pipe(run / "metrics.jsonl"), "metrics.jsonl", "a pipe", ()),
    "metrics lost": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl", "has validated 2 times", ()),
    "results cut": (lambda run: cut(run / "results.json"), "results.json", "not valid JSON", ()),
    "results of another kind": (lambda run: (run / "results.json").write_text("[1]"), "results.json", "got list", ()),
    "a result that is no number": (
        lambda run: rewrite(run / "results.json", lambda results: results["train"].update(valid={"perplexity": "x"})),
        "results.json",
        "remove it, and evaluate again",
        (),
    ),
    "settings of a dynamic evaluation that are none": (
        lambda run: rewrite(run / "results.json", lambda results: results.update(dynamic={"settings": [1]})),
        "results.json",
        "Expected `object`, got `array`",
        (),
    ),
    "best model in a pipe": (
        lambda run: replace_by_a_pipe(run / "train/model.safetensors"),
        "train/model.safetensors",
        "a pipe",
        ("train", "finetune"),
    ),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_each_file_damaged_in_turn(name: str, run: Path) -> None:
    damage, place, words, impossible = DAMAGES[name]
    damage(run)
    before = checksums(run)
    diagnosis = examine(run)
    assert place in [finding.place for finding in diagnosis.wrong]
    assert any(words in finding.text for finding in diagnosis.wrong if finding.place == place), diagnosis.wrong
    assert not any(f"{run}/" in finding.text for finding in diagnosis.wrong), "places are named from the run on"
    for what in impossible:
        assert not can(diagnosis, what).possible, what
        assert can(diagnosis, what).why
        assert can(diagnosis, what).command is None
    assert here("doctor", run).returncode == 1
    assert checksums(run) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: cut(path / "model.safetensors"), "model.safetensors is not what was written"),
        (lambda path: (path / "state.safetensors").unlink(), "state.safetensors is missing"),
        (lambda path: cut(path / "state.json"), "state.json: damaged, not valid JSON"),
        (lambda path: (path / "state.json").write_text("[]"), "expected a JSON object, got list"),
        (lambda path: (path / "state.json").write_text('{"format": 1}'), "does not hold the checksums"),
        (lambda path: rewrite(path / "state.json", lambda state: state.update(format=9)), "format 9"),
        (lambda path: rewrite(path / "state.json", lambda state: state.pop("position")), "where training stands"),
        (lambda path: rewrite(path / "state.json", lambda state: state["position"].update(step=1)), "name"),
        (lambda path: rewrite(path / "state.json", lambda state: state["position"].update(best_loss="x")), "how good"),
    ],
)
def test_a_damaged_checkpoint(damage: Callable[[Path], object], words: str, run: Path) -> None:
    path = newest(run)
    damage(path)
    diagnosis = examine(run)
    (wrong,) = diagnosis.wrong
    assert wrong.place.startswith(f"train/{path.name}")
    assert words in wrong.text
    training = can(diagnosis, "train")
    assert training.possible, "from the one before"
    assert training.command is not None
    for checkpoint in checkpoint_folders(run / "train")[1:]:
        shutil.rmtree(checkpoint)
    assert "no checkpoint can be used" in can(examine(run), "train").why


def test_its_commands_work(run: Path) -> None:
    shutil.rmtree(newest(run))
    cut(run / "finetune" / "model.safetensors")
    diagnosis = examine(run)
    for what in ("train", "evaluate", "dynamic-eval"):
        ability = can(diagnosis, what)
        assert ability.possible
        assert ability.command is not None
        done = here(*ability.command.split()[1:], "--device", "cpu")
        assert done.returncode == 0, done.stderr
    assert "--stage train" in str(can(diagnosis, "evaluate").command)
    assert not can(diagnosis, "finetune").possible
    shutil.rmtree(run / "finetune")
    tuning = can(examine(run), "finetune")
    assert tuning.command is not None
    assert "--resume" not in tuning.command
    assert here(*tuning.command.split()[1:], "--device", "cpu").returncode == 0


def test_notes_are_nothing_wrong(run: Path) -> None:
    (run / "train" / ".new-left").mkdir()
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"stage"')
    cut(next((run / "finetune").glob("gradient-statistics-*")))
    rewrite(run / "run.json", lambda facts: facts["versions"].update(torch="0.2.0"))
    with at_work(run):
        diagnosis = examine(run)
        assert here("doctor", run).returncode == 0
    notes = {finding.place: finding.text for finding in diagnosis.findings if finding.kind == "note"}
    assert "killed" in notes["train/.new-left"]
    assert "cut short" in notes["metrics.jsonl"]
    assert "torch 0.2.0" in notes["run.json"]
    assert f"process {os.getpid()} on " in notes[".lock"]
    assert any("computes it again" in text for text in notes.values())
    assert f"process {os.getpid()} on " in can(diagnosis, "finetune").why
    assert can(diagnosis, "evaluate").possible, "an evaluation beside a training"


def test_before_the_first_checkpoint_and_after_an_import(run: Path) -> None:
    shutil.rmtree(run / "finetune")
    for path in checkpoint_folders(run / "train"):
        shutil.rmtree(path)
    assert can(examine(run), "train").why == "it has come to its end"
    (run / "metrics.jsonl").unlink()
    (run / "results.json").unlink()
    imported = examine(run)
    assert not imported.wrong
    assert "imported" in can(imported, "train").why
    assert can(imported, "finetune").possible
    shutil.rmtree(run / "train")
    begun = examine(run)
    assert "from the start" in can(begun, "train").why
    assert not can(begun, "finetune").possible
    assert not can(begun, "evaluate").possible


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        examine(tmp_path)
    assert here("doctor", tmp_path / "missing").returncode == 1
