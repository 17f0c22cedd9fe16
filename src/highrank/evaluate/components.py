"""The components of a mixture over a text: what one pass gives of every token, and how far they are from each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data.batches import Columns
from highrank.evaluate.held_out import evenly_spaced, hidden_states, in_float64
from highrank.heads import Head
from highrank.models import LanguageModel
from highrank.ops.reference import component_log_prob, mixture_of
from highrank.progress import SILENT, Display

__all__ = ["Differences", "Mixed", "TextStatistics", "component_differences", "mixed", "text_statistics"]

Floats = NDArray[np.float64]
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class TextStatistics:
    """What one pass over a text gives: of each of its N predicted tokens, and of some of the contexts.

    Computed in the model's dtype, kept in float64. Losses and entropies are in nats.
    """

    target: NDArray[np.int64]  # (N)
    previous: NDArray[np.int64]  # (N), the token before it
    loss: Floats  # (N)
    prior: Floats  # (N, K)
    posterior: Floats  # (N, K)
    component_loss: Floats  # (N, K): -log P(target | component, context)
    positions: NDArray[np.int64]  # (S), evenly spaced over the N
    hidden: Tensor  # (S, H), the hidden states there

    @property
    def prior_entropy(self) -> Floats:
        return _entropy(self.prior)

    @property
    def posterior_entropy(self) -> Floats:
        return _entropy(self.posterior)


def text_statistics(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    *,
    contexts: int = 0,
    what: str = "text",
    display: Display = SILENT,
) -> TextStatistics:
    """One pass over a text at batch 1, with the state carried; hidden states of ``contexts`` contexts are kept.

    Memory: O(N * K + contexts * H). For a head without components K is 1.
    """
    count = Columns(tokens, 1, what=what).predicted_tokens
    positions = evenly_spaced(min(contexts, count), count)
    parts, kept = [], []
    loss_sum, first = 0.0, 0
    for segment, hidden_TH in hidden_states(model, tokens, what):
        with torch.no_grad():
            part = model.head.statistics(hidden_TH, segment.target[:, 0], reduction="none")
        parts.append([_array(t) for t in (part.loss, part.prior, part.posterior, -part.component_log_prob)])
        done = segment.start + len(hidden_TH)
        last = int(np.searchsorted(positions, done))
        kept.append(hidden_TH[torch.from_numpy(positions[first:last] - segment.start).to(hidden_TH.device)])
        first = last
        loss_sum += float(parts[-1][0].sum())
        display.progress(what, done, count, loss_sum / done)
    loss, prior, posterior, component_loss = (np.concatenate(each) for each in zip(*parts, strict=True))
    text = np.asarray(tokens, dtype=np.int64)
    return TextStatistics(text[1:], text[:-1], loss, prior, posterior, component_loss, positions, torch.cat(kept))


class Mixed(NamedTuple):
    """Distributions in some contexts, in float64: of the next word by component, and of the mixture; the prior."""

    component_log_prob: Tensor  # (S, K, V)
    log_prob: Tensor  # (S, V)
    prior: Tensor  # (S, K)


def mixed(head: Head, hidden_SH: Tensor) -> Mixed:
    """All of it at once, (S, K, V): for few contexts. ``head`` as from ``in_float64``."""
    with torch.no_grad():
        context_SKD, prior_logits_SK = head.components(hidden_SH.double())
        component_SKV = component_log_prob(context_SKD, head.weight, head.bias)
        log_prob_SV = mixture_of(prior_logits_SK, component_SKV)
    return Mixed(component_SKV, log_prob_SV, torch.softmax(prior_logits_SK, -1))


class Differences(NamedTuple):
    """How far the components are from each other, in nats.

    jensen_shannon (K, K): the divergence of two components' distributions of the next word, the mean over contexts;
        from 0, the same, to log 2, no word in common.
    information (S): in each context the mutual information of component and next word; at most the prior's entropy.
        0: the mixture is as good as one softmax there.
    """

    jensen_shannon: Tensor
    information: Tensor


def component_differences(head: Head, hidden_SH: Tensor, *, display: Display = SILENT) -> Differences:
    """In the contexts of these hidden states (S, H), in float64. Memory: some blocks of 64 MiB."""
    divergence_KK: Tensor | float = 0.0
    information = []
    for block in _blocks(in_float64(head), hidden_SH):
        prob_bKV = block.component_log_prob.exp()
        entropy_bK = -(prob_bKV * block.component_log_prob).sum(-1)
        rows = []
        for k in range(prob_bKV.shape[1]):
            middle_bKV = (prob_bKV + prob_bKV[:, k : k + 1]) / 2
            middle_entropy_bK = torch.special.entr(middle_bKV).sum(-1)
            rows.append((middle_entropy_bK - (entropy_bK + entropy_bK[:, k : k + 1]) / 2).sum(0))
        divergence_KK = divergence_KK + torch.stack(rows)
        entropy_b = -(block.log_prob.exp() * block.log_prob).sum(-1)
        information.append(entropy_b - (block.prior * entropy_bK).sum(-1))
        done = sum(map(len, information))
        display.progress("differences of components", done, len(hidden_SH), unit="contexts")
    assert isinstance(divergence_KK, Tensor)
    # Rounding aside it is symmetric, and not below 0.
    divergence_KK = (divergence_KK / len(hidden_SH)).fill_diagonal_(0)
    return Differences(
        ((divergence_KK + divergence_KK.T) / 2).clamp(min=0).cpu(), torch.cat(information).clamp(min=0).cpu()
    )


def _blocks(head: Head, hidden_SH: Tensor) -> Iterator[Mixed]:
    components = mixed(head, hidden_SH[:1]).prior.shape[-1]
    size = max(1, BLOCK_BYTES // (8 * components * head.num_classes))
    for start in range(0, len(hidden_SH), size):
        yield mixed(head, hidden_SH[start : start + size])


def _array(tensor: Tensor) -> Floats:
    array: NDArray[Any] = tensor.double().cpu().numpy()
    return array


def _entropy(prob_NK: Floats) -> Floats:
    return np.asarray(torch.special.entr(torch.from_numpy(prob_NK)).sum(-1).numpy())
