"""The figures of components.json, from what was seen of a mixture's components over a text; ``components_run`` has the
format."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from highrank.data import Vocabulary
from highrank.data.vocabulary import END_OF_LINE
from highrank.evaluate.bands import Bands, equal_bands, fixed_bands, over_bands
from highrank.evaluate.components import Floats, TextStatistics, mixed
from highrank.evaluate.held_out import in_float64
from highrank.heads import Head

__all__ = ["concentration", "entropies", "examples", "gain_bands", "gain_over", "gains", "use"]

DEAD_BELOW = 0.01  # of an even share
EXAMPLES = 6
EXAMPLE_WORDS = 12  # of the text before
PREFERRED_WORDS = 10
LEAST_OCCURRENCES = 5  # of a word in the text, to be listed
FREQUENCIES = (0, 1, 10, 100, 1_000, 10_000, 100_000)  # in the training text
LINE_POSITIONS = (0, 1, 2, 3, 5, 9, 17, 33)
TEXT_PARTS = 10
ENTROPY_PARTS = 5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
POSTERIORS_BELOW = (1e-3, 1e-4)


def use(text: TextStatistics, vocabulary: Vocabulary) -> dict[str, Any]:
    """How much each component is used, which are dead, and the words that it prefers."""
    count = text.prior.shape[1]
    dead_below = DEAD_BELOW / count
    mean_posterior = text.posterior.mean(0)
    largest = np.bincount(text.posterior.argmax(1), minlength=count) / len(text.loss)
    preferred = _preferred_words(text, vocabulary)
    return {
        "dead_below": dead_below,
        "dead": np.flatnonzero(mean_posterior < dead_below).tolist(),
        "components": [
            {
                "component": k,
                "mean_prior": float(text.prior[:, k].mean()),
                "mean_posterior": float(mean_posterior[k]),
                "dead": bool(mean_posterior[k] < dead_below),
                "most_likely": float(largest[k]),
                "loss_nats": float(text.component_loss[:, k].mean()),
                "words": preferred[k],
            }
            for k in range(count)
        ],
    }


def _preferred_words(text: TextStatistics, vocabulary: Vocabulary) -> list[list[dict[str, Any]]]:
    occurrences = np.bincount(text.target, minlength=len(vocabulary))
    often = np.flatnonzero(occurrences >= LEAST_OCCURRENCES)
    found = []
    for k in range(text.prior.shape[1]):
        ratio = np.bincount(text.target, weights=text.loss - text.component_loss[:, k], minlength=len(vocabulary))
        mean = ratio[often] / occurrences[often]
        best = np.argsort(-mean, kind="stable")[:PREFERRED_WORDS]
        found.append(
            [
                {
                    "word": vocabulary.words[often[i]],
                    "log_ratio": float(mean[i]),
                    "occurrences": int(occurrences[often[i]]),
                }
                for i in best
            ]
        )
    return found


def entropies(text: TextStatistics, vocabulary: Vocabulary, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Of prior and posterior. ``counts``: of each word in the training text."""
    prior, posterior = text.prior_entropy, text.posterior_entropy
    largest = math.log(text.prior.shape[1])
    return {
        "prior_entropy": _distribution(prior, largest)
        | {
            f"by_{name}": over_bands(bands, mean_nats=prior)
            for name, bands in {
                "previous_frequency": fixed_bands(counts[text.previous], FREQUENCIES),
                **_position_bands(text, vocabulary),
            }.items()
        },
        "posterior_entropy": _distribution(posterior, largest),
    }


def _distribution(values: Floats, largest: float) -> dict[str, Any]:
    return {
        "mean_nats": float(values.mean()),
        "largest_nats": largest,
        "quantiles": [{"quantile": q, "nats": float(np.quantile(values, q))} for q in QUANTILES],
    }


def _position_bands(text: TextStatistics, vocabulary: Vocabulary) -> dict[str, Bands]:
    position = np.arange(len(text.loss))
    ends = text.previous == vocabulary.index.get(END_OF_LINE, -1)
    # The place of the last line's end before each token; of the first line, before the text's first word.
    line_start = np.maximum.accumulate(np.where(ends, position, -1))
    return {
        "line_position": fixed_bands(position - line_start, LINE_POSITIONS),
        "text_position": equal_bands(position, TEXT_PARTS),
    }


def concentration(text: TextStatistics) -> dict[str, Any]:
    """Of the posterior on few components."""
    return {
        "sorted_mean": np.sort(text.posterior, axis=1)[:, ::-1].mean(0).tolist(),
        "share_below": [{"threshold": t, "share": float((text.posterior < t).mean())} for t in POSTERIORS_BELOW],
    }


def examples(
    text: TextStatistics, head: Head, information: Floats, tokens: NDArray[np.int32], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """The contexts in which component and next word tell most of each other (``information`` of each)."""
    chosen = np.sort(np.argsort(-information, kind="stable")[:EXAMPLES])
    head = in_float64(head)
    found = []
    for index in chosen:
        position = int(text.positions[index])
        here = mixed(head, text.hidden[index : index + 1])
        log_prob_V, log_prob_KV = here.log_prob[0], here.component_log_prob[0]
        log_ratio_KV = log_prob_KV - log_prob_V
        best_KW = (log_prob_KV.exp() * log_ratio_KV).topk(min(PREFERRED_WORDS, len(vocabulary))).indices
        found.append(
            {
                "position": position,
                "text": vocabulary.decode(tokens[max(0, position + 1 - EXAMPLE_WORDS) : position + 1]),
                "target": vocabulary.words[text.target[position]],
                "information_nats": float(information[index]),
                "prior": text.prior[position].tolist(),
                "posterior": text.posterior[position].tolist(),
                "mixture": [
                    {"word": vocabulary.words[v], "probability": float(log_prob_V[v].exp())}
                    for v in log_prob_V.topk(min(PREFERRED_WORDS, len(vocabulary))).indices.tolist()
                ],
                "components": [
                    [
                        {
                            "word": vocabulary.words[v],
                            "probability": float(log_prob_KV[k, v].exp()),
                            "log_ratio": float(log_ratio_KV[k, v]),
                        }
                        for v in best_W
                        if log_ratio_KV[k, v] > 0
                    ]
                    for k, best_W in enumerate(best_KW.tolist())
                ],
            }
        )
    return found


def gain_bands(text: TextStatistics, vocabulary: Vocabulary, counts: NDArray[np.int64]) -> dict[str, Bands]:
    """The parts of the text for which a gain is told."""
    return {
        "target_frequency": fixed_bands(counts[text.target], FREQUENCIES),
        **_position_bands(text, vocabulary),
        "prior_entropy": equal_bands(text.prior_entropy, ENTROPY_PARTS),
    }


def gains(text: TextStatistics, bands: dict[str, Bands]) -> dict[str, Any]:
    """What the mixture gains over its best and its likeliest component."""
    best = int(text.component_loss.mean(0).argmin())
    likeliest = np.take_along_axis(text.component_loss, text.prior.argmax(1)[:, None], 1)[:, 0]
    return {
        "best_component": {"component": best} | gain_over(text.component_loss[:, best], text.loss, bands),
        "likeliest_component": gain_over(likeliest, text.loss, bands),
    }


def gain_over(other: Floats, loss: Floats, bands: dict[str, Bands]) -> dict[str, Any]:
    """What ``loss`` gains over that of another model, token by token."""
    return {
        "loss_nats": float(other.mean()),
        "gain_nats": float((other - loss).mean()),
    } | {
        f"by_{name}": over_bands(each, loss_nats=loss, other_loss_nats=other, gain_nats=other - loss)
        for name, each in bands.items()
    }
