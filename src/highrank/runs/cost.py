"""What a run will cost, before it is started."""

from typing import Any

from highrank.data import Corpus
from highrank.data.batches import segment_length
from highrank.ops import LossOptions
from highrank.random import derived_seed
from highrank.runs.build import parameter_count
from highrank.runs.config import Config, TrainSection

__all__ = ["estimate"]

FLOAT_BYTES = 4
DRAWN_LENGTHS = 2000  # which takes some hundredths of a second


def estimate(config: Config, corpus: Corpus) -> dict[str, Any]:
    """Parameters, updates of the first epoch (segment lengths are random) and memory of a training step in bytes.

    Memory counts weights, gradients and averages, the optimizer's state, the activations that backward needs, the
    contexts with their gradients, one block of logits, and the weights that a validation of the averages sets aside;
    not the interpreter and libraries (about 300 MB, with PyTorch's optimizers 450), nor the allocator's slack.
    """
    model, train = config.model, config.train
    vocab_size = len(corpus.vocabulary)
    parameters = parameter_count(config, vocab_size)
    steps, batch = train.bptt + train.max_length_delta, config.micro_batch
    widths = [*[model.hidden_features] * (model.num_layers - 1), model.last_hidden_features]
    # Of an LSTM step backward needs the four gates, the cell and the output, and the dropped copy of the output.
    recurrent = sum(7 * width for width in widths) + 2 * model.embedding_features
    components = 1 if model.head == "softmax" else model.num_components
    # Of a context: before and after tanh, after dropout, and the gradients of the last two.
    contexts = 5 * components * model.embedding_features
    block = LossOptions().block_bytes_for("cpu", vocab_size, model.embedding_features)
    step_bytes = FLOAT_BYTES * steps * batch * (recurrent + contexts) + block
    # Gradients of several micro-batches are summed in float64.
    held_bytes = (3 + 2 * (train.batch > batch)) * FLOAT_BYTES * parameters
    # The mean gradient and the mean squared one: RMSProp is AdamW without momentum, and has both too.
    optimizer_bytes = 0 if train.optimizer == "sgd" else 2 * FLOAT_BYTES * parameters
    # In no step, but what a step has freed the allocator may keep.
    validation_bytes = FLOAT_BYTES * parameters
    return {
        "parameters": parameters,
        "vocabulary": vocab_size,
        "updates_per_epoch": _updates_of_first_epoch(train, len(corpus.tokens["train"])),
        "memory_bytes": {
            "weights_gradients_averages": held_bytes,
            "optimizer": optimizer_bytes,
            "longest_step": step_bytes,
            "validation": validation_bytes,
            "total": held_bytes + optimizer_bytes + step_bytes + validation_bytes,
        },
    }


def _updates_of_first_epoch(train: TrainSection, tokens: int) -> int:
    """Its own, where ``DRAWN_LENGTHS`` segments are enough for it; else by their mean length."""
    length = tokens // train.batch - 2  # training leaves out a last segment of one prediction
    seed, covered = derived_seed(train.seed, "train"), 0
    for step in range(DRAWN_LENGTHS):
        if covered >= length:
            return step
        covered += segment_length(seed, step, train.bptt, train.max_length_delta)
    return round(DRAWN_LENGTHS * length / covered)
