"""One update of the weights: forward, backward, clip, step, over all micro-batches."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from highrank.data.batches import Columns
from highrank.models import seed_dropouts
from highrank.runs import Config
from highrank.train.one_pass import one_pass
from highrank.train.state import StageState
from highrank.workers import ALONE, Workers

__all__ = ["Update", "update"]


class Update(NamedTuple):
    """loss_sum: nats, added up over this worker's tokens in float64, where the order of adding changes no bit; norm: of
    the gradient before clipping; both still on the device. steps: how long the segment was."""

    loss_sum: Tensor
    norm: Tensor
    steps: int


def update(
    state: StageState,
    columns: Columns,
    config: Config,
    *,
    seed: int,
    lr: float,
    length: int,
    workers: Workers = ALONE,
) -> Update:
    """Learn from the next ``length`` time steps of every column. Advances the carried states, not the position.

    ``lr`` is that of a segment of ``train.bptt`` steps and is scaled to ``length``. Each micro-batch is a pass of its
    own with its own columns and state; gradients are summed with its share of the batch. Several workers have some
    micro-batches each, and the sum of all gradients: each makes the same step, the one that a worker alone would make.
    """
    model, train = state.model, config.train
    device = next(model.parameters()).device
    model.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    mine = workers.share(len(state.carried))
    for index in mine:
        segment = columns.segment(
            state.position.start, length, first=index * config.micro_batch, batch=config.micro_batch
        ).to(device)
        seed_dropouts(model, seed, state.position.step, index)
        if state.recorded is not None:
            done = state.recorded(segment, state.carried[index])
        elif state.gradient_sum is None:
            done = one_pass(model, config, segment, state.carried[index])
        else:
            with state.gradient_sum.one_pass(workers, first=index == mine[0], last=index == mine[-1]):
                done = one_pass(model, config, segment, state.carried[index])
        state.carried[index] = done.state
        loss_sum += done.loss_sum
    norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    state.step(lr * length / train.bptt)
    return Update(loss_sum, norm, len(segment.tokens))
