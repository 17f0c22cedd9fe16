"""From a configuration and a vocabulary size to a model."""

import torch
from torch import nn

from highrank.functional import LossOptions
from highrank.heads import Head, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from highrank.models import AWDLSTM, LanguageModel, LockedDropout
from highrank.random import derived_seed
from highrank.runs.config import Config

__all__ = ["build_model", "parameter_count"]


def build_model(config: Config, vocab_size: int) -> LanguageModel:
    """A freshly initialised model on the current default device; its numbers follow from ``train.seed`` alone."""
    model, dropout = config.model, config.dropout
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the GPUs of the caller too, and nothing would put them back.
        torch.default_generator.manual_seed(derived_seed(config.train.seed, "initialisation"))
        backbone = AWDLSTM(
            vocab_size,
            embedding_features=model.embedding_features,
            hidden_features=model.hidden_features,
            out_features=model.last_hidden_features,
            num_layers=model.num_layers,
            embedding_dropout=dropout.embedding,
            input_dropout=dropout.input,
            hidden_dropout=dropout.hidden,
            output_dropout=dropout.output,
            weight_dropout=dropout.weight,
            persistent=config.train.recurrence == "triton",
        )
        head = _build_head(config, vocab_size)
        width = model.embedding_features
        past_decoder = Softmax(width, vocab_size, context_features=width) if config.train.past_decode else None
        for each in (head, past_decoder):
            if each is not None:
                each.implementation = config.train.implementation
        return LanguageModel(backbone, head, tied=model.tied, past_decoder=past_decoder)


def parameter_count(config: Config, vocab_size: int) -> int:
    """Without spending memory on the parameters."""
    with torch.device("meta"):
        return build_model(config, vocab_size).num_parameters


def _build_head(config: Config, vocab_size: int) -> Head:
    model = config.model
    context_dropout: nn.Module = LockedDropout(config.dropout.context)
    options = LossOptions(min_posterior=config.train.min_posterior or None)
    if model.head == "softmax":
        same = model.last_hidden_features == model.embedding_features
        return Softmax(
            model.last_hidden_features,
            vocab_size,
            context_features=None if same else model.embedding_features,
            context_dropout=None if same else context_dropout,
            options=options,
        )
    mixture = MixtureOfContexts if model.head == "mixture-of-contexts" else MixtureOfSoftmaxes
    return mixture(
        model.last_hidden_features,
        vocab_size,
        num_components=model.num_components,
        context_features=model.embedding_features,
        context_dropout=context_dropout,
        options=options,
    )
