"""The configuration: read, overridden, saved, and the recipes that are shipped."""

from pathlib import Path

import pytest

from highrank.errors import UserError
from highrank.runs import find_recipe, parse_config, read_config, recipe_names, to_toml

MINIMAL = {"data": {"corpus": "penn"}}


def test_saving_and_reading_gives_the_same(tmp_path: Path) -> None:
    config = parse_config(MINIMAL, source="test", overrides=["train.lr=7", "model.head=softmax", "dynamic.lamb=0.5"])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert read_config(path) == config
    assert (config.train.lr, config.model.head, config.dynamic.lamb) == (7.0, "softmax", 0.5)


def test_overrides_take_numbers_words_and_truth_values() -> None:
    overrides = ["train.batch = 40", "data.corpus=my-text", "model.tied=false", "dynamic.lr=1e-3"]
    config = parse_config(MINIMAL, source="test", overrides=overrides)
    assert config.train.batch == 40
    assert config.data.corpus == "my-text"
    assert config.model.tied is False
    assert config.dynamic.lr == 1e-3


def test_a_whole_number_may_stand_for_a_real_one_but_not_the_other_way() -> None:
    assert parse_config(MINIMAL, source="test", overrides=["train.lr=20"]).train.lr == 20.0
    with pytest.raises(UserError, match=r"train\.batch: expected int, got 2\.5"):
        parse_config(MINIMAL, source="test", overrides=["train.batch=2.5"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch=x"], "--set: train.batch: expected int, got 'x'"),
        (["train.lr=5,"], "--set: train.lr: expected float, got '5,'"),
        (
            ["train.batch=1e2"],
            "--set: train.batch: expected int, got 100.0 (numbers are written as in TOML: 0.5, 1000)",
        ),
        (["train.schedule=5."], "--set: train.schedule: expected one of constant, linear, cosine, got '5.'"),
        (["train.batch=7"], "--set: train.micro_batch: expected a divisor of train.batch 7, got 4"),
        (["train.lr=5"], "recipe: train.micro_batch: expected a divisor of train.batch 6, got 4"),
        ([], "recipe: train.micro_batch: expected a divisor of train.batch 6, got 4"),
        (
            ["train.past_decode=1", "train.min_posterior=0.1"],
            "--set: train.min_posterior: expected 0 with train.past_decode, which leaves out no posterior, got 0.1",
        ),
    ],
)
def test_what_is_wrong_is_said_of_where_it_comes_from(overrides: list[str], said: str) -> None:
    batch = 6 if said.startswith("recipe") else 8
    with pytest.raises(UserError) as error:
        parse_config({**MINIMAL, "train": {"batch": batch, "micro_batch": 4}}, source="recipe", overrides=overrides)
    assert str(error.value) == said


def test_an_override_can_mend_what_the_recipe_has_wrong() -> None:
    values = {**MINIMAL, "train": {"batch": 6, "micro_batch": 4}}
    assert parse_config(values, source="recipe", overrides=["train.micro_batch=3"]).micro_batch == 3


def test_the_corpus_must_be_named() -> None:
    with pytest.raises(UserError, match="corpus"):
        parse_config({"data": {}}, source="test")


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_say_what_they_promise(name: str) -> None:
    import tomllib

    path = find_recipe(name)
    read_config(path)
    promise = tomllib.loads(path.read_text())["promise"]
    assert {"command", "hardware", "time", "memory", "perplexity", "source"} <= set(promise)
    assert f" {name}" in promise["command"]


def test_a_file_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ncorpus = "mine"\n')
    assert read_config(find_recipe(str(path))).data.corpus == "mine"
