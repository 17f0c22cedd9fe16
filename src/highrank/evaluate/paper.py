"""The figures of the paper (Yang et al. 2018, arXiv 1711.03953) that ours are set beside."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["PAPER", "PAPER_RANKS", "SOURCE", "Published"]

SOURCE = "Yang et al. 2018, arXiv 1711.03953"


class Published(NamedTuple):
    """A model of the paper: perplexity on validation and test text, by stage; parameters in millions."""

    name: str
    parameters_millions: int
    perplexity: Mapping[str, tuple[float, float]]


# By the name of the corpus. Its table 1 (Penn Treebank) and 2 (WikiText-2), and the ablations of tables 3 and 4.
PAPER: Mapping[str, tuple[Published, ...]] = {
    "penn": (
        Published(
            "mixture of softmaxes, K=15",
            22,
            {"train": (58.08, 55.97), "finetune": (56.54, 54.44), "dynamic": (48.33, 47.69)},
        ),
        Published("mixture of contexts, same size", 22, {"train": (59.82, 57.55)}),
        Published("one softmax, its own settings", 24, {"train": (61.49, 58.95)}),
        Published("one softmax, the mixture's settings", 22, {"train": (78.86, 74.86)}),
    ),
    "wikitext-2": (
        Published(
            "mixture of softmaxes, K=15",
            35,
            {"train": (66.01, 63.33), "finetune": (63.88, 61.45), "dynamic": (42.41, 40.68)},
        ),
        Published("mixture of contexts, same size", 35, {"train": (68.76, 65.98)}),
        Published("one softmax, its own settings", 33, {"train": (68.73, 65.40)}),
        Published("one softmax, the mixture's settings", 35, {"train": (72.73, 69.18)}),
    ),
}

# Of the log-probabilities on Penn Treebank, V = 10,000; by the round-off rule of ``rank``.
PAPER_RANKS = (
    {"head": "softmax", "num_components": 1, "context_features": 400, "vocabulary": 10_000, "rank": 400},
    {"head": "mixture-of-contexts", "num_components": 15, "context_features": 280, "vocabulary": 10_000, "rank": 280},
    {"head": "mixture-of-softmaxes", "num_components": 15, "context_features": 280, "vocabulary": 10_000, "rank": 9981},
)
