"""Held-out text as contexts: the hidden states of a model over a text, at batch 1 with the state carried."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns, Segment
from highrank.heads import Head
from highrank.models import LanguageModel, detached

__all__ = ["evenly_spaced", "hidden_states", "in_float64"]

SEGMENT = 1024


def hidden_states(model: LanguageModel, tokens: NDArray[np.int32], what: str) -> Iterator[tuple[Segment, Tensor]]:
    """Segments of the text and the hidden states (T, H) that predict their targets, each after all the text before."""
    columns = Columns(tokens, 1, what=what)
    device = next(model.parameters()).device
    state = model.initial_state(1)
    with torch.no_grad():
        for segment in columns.segments(SEGMENT):
            output = model.backbone(segment.tokens.to(device), state)
            state = detached(output.state)
            yield segment, output.hidden[:, 0]


def evenly_spaced(count: int, total: int) -> NDArray[np.int64]:
    """``count`` different numbers from 0 to below ``total``, ascending."""
    return np.arange(count, dtype=np.int64) * total // count


def in_float64(head: Head) -> Head:
    """A copy of the head that computes in float64, without dropout."""
    return copy.deepcopy(head).double().eval()
