"""Held-out text as contexts: the hidden states of a model over a text, with the state carried."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns, Segment
from highrank.heads import Head
from highrank.models import LanguageModel
from highrank.workers import ALONE, Workers

__all__ = ["evenly_spaced", "hidden_states", "in_float64", "read_text"]

SEGMENT = 1024


def read_text(
    model: LanguageModel, columns: Columns, segment: int, workers: Workers = ALONE
) -> Iterator[tuple[Segment, Tensor]]:
    """Segments of ``segment`` time steps on the model's device, and the hidden states (T, B, H) that predict their
    targets, with the state carried.

    Of several ``workers`` each carries the state through the whole text, and is given its share of the segments.
    """
    device = next(model.parameters()).device
    state = model.initial_state(columns.batch)
    for index, part in enumerate(columns.segments(segment)):
        part = part.to(device)
        with torch.no_grad():  # not around the yield: it would hold for the caller until the generator is closed
            output = model.backbone(part.tokens, state)
        state = output.state
        if workers.owner(index) == workers.rank:
            yield part, output.hidden


def hidden_states(model: LanguageModel, tokens: NDArray[np.int32], what: str) -> Iterator[tuple[Segment, Tensor]]:
    """Segments of the text and the hidden states (T, H) that predict their targets, each after all the text before."""
    for segment, hidden_T1H in read_text(model, Columns(tokens, 1, what=what), SEGMENT):
        yield segment, hidden_T1H[:, 0]


def evenly_spaced(count: int, total: int) -> NDArray[np.int64]:
    """``count`` different numbers from 0 to below ``total``, ascending."""
    return np.arange(count, dtype=np.int64) * total // count


def in_float64(head: Head) -> Head:
    """A copy of the head that computes in float64, without dropout."""
    return copy.deepcopy(head).double().eval()
