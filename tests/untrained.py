"""Runs whose models are not trained."""

from pathlib import Path
from typing import Any

import torch

from highrank.data import Corpus
from highrank.runs import RunFolder, build_model, parse_config
from highrank.runs.tensors import model_tensors

__all__ = ["make_run"]


def make_run(folder: Path, corpus: Corpus, head: str = "mixture-of-softmaxes", **changes: Any) -> RunFolder:
    """A run whose model is not trained, but has weights that are large enough for its components to differ."""
    sizes = {"embedding_features": 5, "hidden_features": 6, "last_hidden_features": 7, "num_layers": 1}
    values = {"data": {"corpus": "text"}, "model": {"head": head, "num_components": 3, **sizes, **changes}}
    config = parse_config(values, source="test")
    run = RunFolder.create(folder, config, corpus.vocabulary, corpus)
    model = build_model(config, len(corpus.vocabulary))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.5, 1.5, generator=generator)
    run.save_best("train", model_tensors(model))
    return run
