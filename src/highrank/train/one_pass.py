"""One forward and backward pass of an update: a micro-batch in a segment."""

from typing import NamedTuple

import torch
from torch import Tensor

from highrank.data.batches import Segment
from highrank.models import LanguageModel, State, detached
from highrank.runs import Config
from highrank.train.objective import objective
from highrank.train.past_decode import predict_and_decode_past

__all__ = ["Pass", "one_pass"]


class Pass(NamedTuple):
    """state: to carry on with; loss_sum: nats, added up over the tokens in float64, still on the device."""

    state: State
    loss_sum: Tensor


def one_pass(model: LanguageModel, config: Config, segment: Segment, state: State) -> Pass:
    """Adds the gradients of the micro-batch's share of the objective to ``grad``."""
    train = config.train
    with torch.autocast(segment.tokens.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
        if train.past_decode:
            output, past_loss = predict_and_decode_past(model, segment, state)
            total = objective(output, train.alpha, train.beta) + train.past_decode * past_loss
        else:
            output = model(segment.tokens, segment.target, state)
            total = objective(output, train.alpha, train.beta)
    (total * (config.micro_batch / train.batch)).backward()
    return Pass(detached(output.state), output.loss.detach().double() * segment.target.numel())
