"""Runs to explore: a trained one, and one of each head with the weights that it began with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from highrank.data import Corpus
from highrank.explore import Explorer
from highrank.runs import RunFolder, read_config
from highrank.runs.build import build_model
from highrank.runs.tensors import model_tensors
from highrank.train import Machine, corpus_for, open_or_create, train

RECIPE = Path(__file__).parent.parent / "train" / "tiny.toml"
MakeExplorer = Callable[..., Explorer]


def corpus_at(small_text: Path) -> Corpus:
    return corpus_for(read_config(RECIPE), str(small_text))


@pytest.fixture(scope="session")
def trained(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explored") / "tiny"
    corpus = corpus_at(small_text)
    folder = open_or_create(out, read_config(RECIPE, overrides=["train.epochs=1"]), corpus, resume=False)
    train(folder, corpus, Machine(torch.device("cpu")))
    return out


@pytest.fixture(scope="session")
def explorer(trained: Path, small_text: Path) -> Explorer:
    return Explorer(RunFolder.open(trained), lambda: corpus_at(small_text))


@pytest.fixture
def make_explorer(small_text: Path, tmp_path: Path) -> MakeExplorer:
    """An explorer of an untrained model with some settings of the recipe changed."""

    def make(*overrides: str, **settings: object) -> Explorer:
        config, corpus = read_config(RECIPE, overrides=overrides), corpus_at(small_text)
        folder = RunFolder.create(tmp_path / "run", config, corpus.vocabulary, corpus)
        folder.save_best("train", model_tensors(build_model(config, len(corpus.vocabulary))))
        return Explorer(folder, lambda: corpus, **settings)  # type: ignore[arg-type]

    return make
