"""What a run will cost, before it is started."""

from itertools import pairwise
from typing import Any

import torch

from highrank.data import Corpus
from highrank.data.batches import segment_length
from highrank.ops import LossOptions
from highrank.ops.chunked import STRIP_BYTES
from highrank.random import derived_seed
from highrank.runs.build import build_model
from highrank.runs.config import Config, TrainSection

__all__ = ["estimate"]

FLOAT_BYTES = 4
# Of PyTorch's LSTM on a CPU, as measured with 2.13: how many numbers backward needs for a unit and a step, with the
# output and its dropped copy; how many copies of its largest matrix backward makes.
LSTM_NUMBERS, LSTM_BACKWARD = 16.5, 6
DRAWN_LENGTHS = 2000  # which takes some hundredths of a second


def estimate(config: Config, corpus: Corpus) -> dict[str, Any]:
    """Parameters, updates of the first epoch (segment lengths are random) and memory of training in bytes, on a CPU.

    Memory counts weights, averages and sums of gradients over micro-batches, the optimizer's state, and what the
    longest step needs beside them; not the interpreter and libraries (about 230 MB, with PyTorch's optimizers 450), the
    allocator's slack, which may be a fifth more, nor what a validation computes where that is more than a step.
    """
    train, vocab_size = config.train, len(corpus.vocabulary)
    with torch.device("meta"):
        model = build_model(config, vocab_size)
    trained = sum(parameter.numel() for parameter in model.parameters())  # of a past decoder, too
    # Gradients of several micro-batches are summed in float64.
    held_bytes = (2 + 2 * (train.batch > config.micro_batch)) * FLOAT_BYTES * trained
    # The mean gradient and the mean squared one: RMSProp is AdamW without momentum, and has both too.
    optimizer_bytes = 0 if train.optimizer == "sgd" else 2 * FLOAT_BYTES * trained
    step_bytes = _step_bytes(config, vocab_size, trained)
    return {
        "parameters": model.num_parameters,
        "vocabulary": vocab_size,
        "updates_per_epoch": _updates_of_first_epoch(train, len(corpus.tokens["train"])),
        "memory_bytes": {
            "weights_averages_sums": held_bytes,
            "optimizer": optimizer_bytes,
            "longest_step": step_bytes,
            "total": held_bytes + optimizer_bytes + step_bytes,
        },
    }


def _step_bytes(config: Config, vocab_size: int, parameters: int) -> int:
    """The most of: the loss, which has all that backward needs; backward in each layer, the last one first; and of the
    look-up, whose gradient is as large as the embedding, when there are all others."""
    model, train = config.model, config.train
    tokens = (train.bptt + train.max_length_delta) * config.micro_batch
    components = model.components
    softmaxes = components if model.head == "mixture-of-softmaxes" else 1
    embedding = vocab_size * model.embedding_features  # what its gradient has, too
    room = LossOptions().block_bytes_for("cpu", vocab_size, model.embedding_features) // FLOAT_BYTES
    logits = min(room, tokens * softmaxes * vocab_size)
    widths = [*[model.hidden_features] * (model.num_layers - 1), model.last_hidden_features]
    looked_up = needed = 2 * tokens * model.embedding_features
    layers = []
    for before, width in pairwise([model.embedding_features, *widths]):
        # The matrix without the weights that are dropped, and which ones these are.
        dropped = 5 * width * width if config.dropout.weight else 0
        needed += round(LSTM_NUMBERS * tokens * width) + dropped
        layers.append((needed, 4 * width * (before + width), 4 * width * max(before, width)))
    contexts = tokens * components * model.embedding_features
    if train.past_decode:  # p, its logarithm, and the gradients of both; or the walk back, a block in strips
        predicted = tokens * vocab_size
        strip = min(logits, max(STRIP_BYTES // FLOAT_BYTES, softmaxes * vocab_size))
        blocks = logits + strip + 2 * strip // softmaxes
        peaks = [needed + 2 * contexts + 2 * embedding + 2 * predicted + max(2 * predicted, blocks)]
    else:  # of a context: after tanh, after dropout, and its gradient
        peaks = [needed + 3 * contexts + embedding + logits]
    gradients = embedding  # which waits for that of the looked-up words
    for needed, weights, largest in reversed(layers):
        peaks.append(needed + gradients + LSTM_BACKWARD * largest)
        if train.batch == config.micro_batch:
            gradients += weights
    peaks.append(looked_up + embedding + (parameters if train.batch == config.micro_batch else embedding))
    return FLOAT_BYTES * max(peaks)


def _updates_of_first_epoch(train: TrainSection, tokens: int) -> int:
    """Its own, where ``DRAWN_LENGTHS`` segments are enough for it; else by their mean length."""
    length = tokens // train.batch - 2  # training leaves out a last segment of one prediction
    seed, covered = derived_seed(train.seed, "train"), 0
    for step in range(DRAWN_LENGTHS):
        if covered >= length:
            return step
        covered += segment_length(seed, step, train.bptt, train.max_length_delta)
    return round(DRAWN_LENGTHS * length / covered)
