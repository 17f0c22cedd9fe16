"""Embedding norms from counts: training begins with long vectors for frequent words and short ones for rare words.

After Herold, Gao, Ney 2018 (aclanthology.org/W18-6310), who found that the norms of trained word vectors follow the
frequencies of the words, and so began with norms of "scaled log word counts". After, not as: of their paper the idea
was at hand, not the scale, nor what they did with words that are not seen. Both are ours: the embedding keeps the size
that it was drawn with (its Frobenius norm), and a word that the training text lacks counts as one seen once.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from highrank.models import LanguageModel

__all__ = ["set_norms_from_counts"]


def set_norms_from_counts(model: LanguageModel, counts: NDArray[np.int64]) -> None:
    """Give the word embeddings of ``model``, input and output, rows whose norms are proportional to log(1 + count).

    counts (V): of each word in the training text. Directions stay as they are, and so does the norm of the whole.
    """
    norms_V = torch.from_numpy(np.log1p(np.maximum(counts, 1)))
    _set_norms(model.backbone.embedding, norms_V)
    if model.head.weight is not model.backbone.embedding:
        _set_norms(model.head.weight, norms_V)


@torch.no_grad()
def _set_norms(embedding_VD: Tensor, norms_V: Tensor) -> None:
    drawn_VD = embedding_VD.double()
    scale = drawn_VD.norm() / norms_V.norm()
    embedding_VD.copy_(nn.functional.normalize(drawn_VD, dim=1) * (scale * norms_V).unsqueeze(1))
