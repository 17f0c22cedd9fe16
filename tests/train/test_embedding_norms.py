"""An embedding whose norms follow the counts: by the words of the docstring, in the model and in a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.processes import RECIPE
from highrank.data import load_corpus, word_counts
from highrank.runs import build_model, parse_config, read_config
from highrank.train import Machine, open_or_create, train
from highrank.train.embedding_norms import set_norms_from_counts

COUNTS = np.array([0, 1, 2, 9, 99, 12_345, 0, 7], dtype=np.int64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["softmax", "mixture-of-contexts", "mixture-of-softmaxes"])
def test_norms_follow_the_logarithms_and_directions_stay(head: str, tied: bool) -> None:
    sizes = {"embedding_features": 5, "hidden_features": 6, "last_hidden_features": 7, "num_layers": 1}
    config = parse_config(
        {"data": {"corpus": "text"}, "model": {"head": head, "num_components": 3, "tied": tied, **sizes}}, source="test"
    )
    model, drawn = build_model(config, len(COUNTS)), build_model(config, len(COUNTS))
    set_norms_from_counts(model, COUNTS)
    assert (model.head.weight is model.backbone.embedding) == tied
    embeddings = ("backbone.embedding", "head.weight") if not tied else ("backbone.embedding",)
    before, after = dict(drawn.named_parameters()), dict(model.named_parameters())
    for name in embeddings:
        old, new = before[name].detach(), after[name].detach()
        assert torch.allclose(nn.functional.normalize(new), nn.functional.normalize(old), atol=1e-6)
        assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-6)
        norms = new.norm(dim=1).numpy()
        expected = np.log([2, 2, 3, 10, 100, 12_346, 2, 8])
        assert norms / norms[0] == pytest.approx(expected / expected[0], rel=1e-5)
    for name in set(before) - set(embeddings):
        assert before[name].equal(after[name]), name


def embedding_of_a_run(path: Path, text: Path, *overrides: str) -> Tensor:
    """After an epoch at a rate that moves nothing."""
    barely = ("train.epochs=1", "train.lr=1e-12", "train.average_from=0", "data.train_tokens=1500")
    config = read_config(RECIPE, overrides=(*barely, "data.heldout_tokens=300", *overrides))
    corpus = load_corpus(text)
    run = open_or_create(path, config, corpus, resume=False)
    train(run, corpus, Machine(torch.device("cpu")))
    return run.load_model().backbone.embedding.detach()


def test_training_begins_with_them_where_the_setting_says_so(small_text: Path, tmp_path: Path) -> None:
    corpus = load_corpus(small_text)
    expected = np.log1p(np.maximum(word_counts(corpus), 1))
    plain = embedding_of_a_run(tmp_path / "plain", small_text)
    scaled = embedding_of_a_run(tmp_path / "scaled", small_text, "model.embedding_init=log-counts")
    norms = scaled.norm(dim=1).double().numpy()
    assert norms / norms.max() == pytest.approx(expected / expected.max(), rel=1e-4)
    assert torch.allclose(nn.functional.normalize(scaled), nn.functional.normalize(plain), atol=1e-5)
    assert float(plain.abs().max()) <= 0.1 + 1e-5
