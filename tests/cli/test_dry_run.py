"""``--dry-run``: it counts what training does, refuses what training refuses, and writes nothing."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import memory_of
from benchmarks.processes import RECIPE, here, one_line
from highrank.cli.main import main
from highrank.data import Vocabulary
from highrank.data.batches import Columns
from highrank.runs import RunFolder, build_model, cost, find_recipe, read_config, recipe_names
from highrank.runs.cost import estimate
from highrank.train import timing
from highrank.train.stages import corpus_for
from highrank.train.state import StageState
from highrank.train.update import Update, update

MANY_WORDS = ("model.hidden_features=100", "model.last_hidden_features=100", "model.num_layers=2")  # most of the memory


def test_dry_run_writes_nothing(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("train", RECIPE, "--data", small_text, "--dry-run", "--json")
    result = json.loads(done.stdout)
    assert result["parameters"] > 0
    assert result["configuration"]["train"]["batch"] == 6
    assert not list(tmp_path.iterdir())
    done = here(
        "train", RECIPE, "--data", small_text, "--dry-run", "--json", "--workers", "2", "--out", tmp_path / "run"
    )
    assert json.loads(done.stdout)["parameters"] == result["parameters"], "said once, though of two workers"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("average_from", "said"), [(4, True), (3, False), (0, False)])
def test_too_few_epochs_to_average_are_told(average_from: int, said: bool, small_text: Path) -> None:
    settings = "--set", "train.epochs=3", "--set", f"train.average_from={average_from}"
    done = here("train", RECIPE, "--data", small_text, *settings, "--dry-run")
    assert done.returncode == 0
    assert ("train.average_from=4: weights are not averaged before training ends, with epoch 3" in done.stderr) == said


@pytest.mark.parametrize("micro_batch", [2, 0])
def test_dry_run_tells_the_time_of_an_update(
    micro_batch: int, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("--set", "train.epochs=50", "--set", f"train.micro_batch={micro_batch}")
    options = ("train", RECIPE, "--data", small_text, *sizes, "--device", "cpu", "--dry-run")
    plain, timed = (json.loads(here(*options, "--json", *more).stdout) for more in ((), ("--time",)))
    update_s, device = timed.pop("update_s"), timed.pop("device")
    assert timed == plain
    assert "cpu" in device
    assert 0 < update_s < 60
    said = here(*options, "--time")
    assert said.returncode == 0, said.stderr
    [line] = [line for line in said.stdout.splitlines() if line.startswith("time  ")]
    assert re.search(
        r" s an update, about \S+ s an epoch and \S+ (s|min) for 50 epochs, without validations; ", line
    ), line
    assert not list(tmp_path.iterdir())
    one_line(here(*options[:-1], "--time"), "--time: goes with --dry-run", codes=(2,))


def test_of_slow_updates_one_is_timed(small_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(RECIPE)
    lengths: list[int] = []

    def counted(*arguments: Any, length: int, **more: Any) -> Update:
        lengths.append(length)
        return update(*arguments, length=length, **more)

    monkeypatch.setattr(timing, "update", counted)
    monkeypatch.setattr(timing, "ENOUGH_S", 0.0)
    timing.time_updates(config, corpus_for(config, str(small_text)), torch.device("cpu"))
    assert lengths == [config.train.bptt] * (timing.WARM_UPDATES + 1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch=9999"], "train.batch"),
        (["data.heldout_tokens=3"], "valid.txt"),
        (["train.cuda_graphs=true", "train.micro_batch=0"], "needs an NVIDIA GPU"),
    ],
)
def test_dry_run_refuses_what_training_does(overrides: list[str], words: str, small_text: Path, tmp_path: Path) -> None:
    settings = [word for override in overrides for word in ("--set", override)]
    options = ["--data", small_text, *settings, "--device", "cpu", "--out", tmp_path / "run"]
    dry = one_line(here("train", RECIPE, *options, "--dry-run"), words, codes=(1, 2))
    assert one_line(here("train", RECIPE, *options), words, codes=(1, 2)) == dry


def test_dry_run_knows_the_updates_of_the_first_epoch(
    small_text: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = next(e["step"] for e in RunFolder.open(trained).metrics() if e["event"] == "validation")
    config = RunFolder.open(trained).config
    corpus = corpus_for(config, str(small_text))
    assert estimate(config, corpus)["updates_per_epoch"] == updates
    monkeypatch.setattr(cost, "DRAWN_LENGTHS", updates // 2)  # a long one, of which the mean length tells
    assert estimate(config, corpus)["updates_per_epoch"] == pytest.approx(updates, rel=0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_dry_run_counts_what_the_optimizer_holds(optimizer: str, small_text: Path) -> None:
    config = read_config(RECIPE, overrides=[f"train.optimizer={optimizer}"])
    corpus = corpus_for(config, str(small_text))
    state = StageState(build_model(config, len(corpus.vocabulary)), config)
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.step(0.1)
    memory = estimate(config, corpus)["memory_bytes"]
    assert memory["optimizer"] == sum(t.nbytes for t in state.optimizer.named_tensors().values() if t.dim())
    assert memory.pop("total") == sum(memory.values())


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.batch=12", "train.micro_batch=4"),
        ("train.batch=12", "train.micro_batch=0"),
        ("train.batch=2", "train.micro_batch=0", "model.hidden_features=900"),  # the weights are most of it
        ("train.batch=30", "train.micro_batch=0", "model.head=softmax", "dropout.weight=0"),
        ("train.batch=4", "train.micro_batch=2", "train.bptt=5", *MANY_WORDS),
        ("train.batch=4", "train.micro_batch=0", "train.bptt=5", *MANY_WORDS),
        ("train.batch=4", "train.micro_batch=0", "train.bptt=5", *MANY_WORDS, "model.head=softmax"),
        ("train.batch=12", "train.micro_batch=4", "train.past_decode=0.1"),
        ("train.batch=4", "train.micro_batch=0", "train.bptt=5", *MANY_WORDS, "train.past_decode=0.1"),
        ("train.batch=20", "train.micro_batch=0", *MANY_WORDS, "model.head=softmax", "train.past_decode=0.1"),
    ],
    ids=" ".join,
)
def test_dry_run_knows_the_memory_of_the_longest_step(overrides: tuple[str, ...], small_text: Path) -> None:
    sizes = ["embedding_features=100", "hidden_features=400", "last_hidden_features=200", "num_layers=3"]
    wide = [f"model.{size}" for size in (*sizes, "num_components=5")]
    config = read_config(RECIPE, overrides=[*wide, "train.bptt=30", "train.max_length_delta=10", *overrides])
    corpus = corpus_for(config, str(small_text))
    if set(MANY_WORDS) <= set(overrides):
        words = [*corpus.vocabulary.words, *map(str, range(20_000))]
        corpus = replace(corpus, vocabulary=Vocabulary(words))
    state = StageState(build_model(config, len(corpus.vocabulary)).train(), config)
    state.start_averaging()
    memory = estimate(config, corpus)["memory_bytes"]
    sums = {} if state.gradient_sum is None else state.gradient_sum._sums
    held = [*state.model.parameters(), *state.average.tensors.values(), *sums.values()]
    assert memory["weights_averages_sums"] == sum(tensor.nbytes for tensor in held)
    columns = Columns(corpus.tokens["train"], config.train.batch)
    length = config.train.bptt + config.train.max_length_delta
    used = memory_of(lambda: update(state, columns, config, seed=1, lr=1.0, length=length))
    assert memory["longest_step"] == pytest.approx(used.peak_bytes, rel=0.15)


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith(("penn", "wikitext-2"))])
def test_the_papers_sizes(recipe: str, corpora: Path) -> None:
    """And what recipes promise of them."""
    folder = corpora / ("penn" if recipe.startswith("penn") else "wikitext-2")
    said = json.loads(here("train", recipe, "--data", folder, "--dry-run", "--json").stdout)
    parameters = {"penn": 21_500_620, "wikitext-2": 34_909_528}.get(recipe, said["parameters"])
    assert said["parameters"] == parameters
    memory = tomllib.loads(find_recipe(recipe).read_text())["promise"]["memory"]
    if "the estimate of --dry-run" in memory:
        assert f"about {said['memory_bytes']['total'] / 1e9:.1f} GB" in memory
        assert f"{parameters:,} parameters" in memory


@pytest.mark.parametrize("command", ["train", "run"])
def test_help_names_the_recipes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = "".join(capsys.readouterr().out.split())  # wherever its lines are broken
    assert f"({','.join(recipe_names())})" in said
