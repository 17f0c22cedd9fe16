"""The components of a run's mixture over a text, as figures that are kept with the run."""

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from highrank.data import Corpus, Vocabulary
from highrank.data.vocabulary import END_OF_LINE
from highrank.errors import UserError
from highrank.evaluate.bands import Bands, equal_bands, fixed_bands, over_bands
from highrank.evaluate.components import Floats, TextStatistics, component_differences, mixed, text_statistics
from highrank.evaluate.held_out import in_float64
from highrank.evaluate.of_run import keep
from highrank.files import file_sha256
from highrank.heads import Head
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.runs import RunFolder

__all__ = ["COMPONENTS_FILE", "components_run"]

COMPONENTS_FILE = "components.json"
DEAD_BELOW = 0.01  # of an even share
CONTEXTS = 512  # in which whole distributions are compared
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


def components_run(
    run: RunFolder,
    corpus: Corpus,
    split: str = "test",
    *,
    stage: str | None = None,
    control: RunFolder | None = None,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
) -> dict[str, Any]:
    """What the components of the best model of a stage do over a split, every token predicted with all before it.

    ``control``: a run on the same vocabulary, with any head, to compare with token by token (its last stage).
    Returned with ``run``, and without it written to components.json of the run. Format 1, everything in nats, words as
    text, components from 0; means over the predicted tokens of the split unless it says contexts:

        format, stage, split, model_sha256, head, num_components (K), context_features, vocabulary, tokens
        loss_nats, perplexity
        dead_below: a component with a smaller mean posterior is dead (a hundredth of an even share)
        dead: [component]
        components: a list of K of
            component, mean_prior, mean_posterior, dead
            most_likely: share of the tokens for which its posterior is the largest
            loss_nats: of this component alone, as if it were the model
            words: the words it prefers, [{word, log_ratio, occurrences}], largest ratio first: the mean of
                log P(word | component) - log P(word) over the places where the word stands, which are at least 5
        prior_entropy, posterior_entropy: {mean_nats, largest_nats (log K), quantiles: [{quantile, nats}]}
        prior_entropy also: by_previous_frequency, by_line_position, by_text_position: [{from, to, tokens, mean_nats}]
        posterior: {sorted_mean: [K, largest first], share_below: [{threshold, share}] (share of all N * K posteriors)}
        divergence: {measure: "jensen-shannon", contexts, mean_nats: [[K x K]], largest_nats (log 2),
            information_nats (mean mutual information of component and next word)}
        contexts: examples, those of the contexts above in which component and next word tell most of each other, [
            position, text (the last words before), target, information_nats, prior: [K], posterior: [K],
            mixture: [{word, probability}], the likeliest words,
            components: K lists [{word, probability, log_ratio}] of words it makes likelier than the mixture does, by
                probability * log_ratio, largest first]
        gain: {best_component, likeliest_component, control (or null)}, each
            {component (of best_component), run, stage, head (of control), loss_nats, gain_nats,
            by_target_frequency, by_line_position, by_text_position, by_prior_entropy:
                [{from, to, tokens, loss_nats (of the mixture), other_loss_nats, gain_nats}]}
            best_component: the one with the lowest loss alone; likeliest_component: in each context that of the largest
            prior. gain_nats = other_loss_nats - loss_nats
        dtype (of the model), device, elapsed_s

    In rows ``to`` is included, and null where there is no end. Frequencies are counts in the training text; a line
    position is the number of words of the line before the target; text positions count from the start of the split.

    Raises UserError: the head has no components, or the control has another vocabulary.
    """
    began = time.perf_counter()
    run.check_corpus(corpus)
    check_has_components(run)
    if control is not None:
        check_same_vocabulary(run, control)
    stage = stage or run.last_stage()
    model = run.load_model(stage, device=device)
    tokens = corpus.tokens[split]
    text = text_statistics(model, tokens, contexts=CONTEXTS, what=f"components: {split}", display=display)
    differences = component_differences(model.head, text.hidden, display=display)
    counts = np.bincount(corpus.tokens["train"], minlength=len(run.vocabulary))
    result = {
        "format": 1,
        "stage": stage,
        "split": split,
        "model_sha256": file_sha256(run.best_model_path(stage)),
        "head": run.config.model.head,
        "num_components": text.prior.shape[1],
        "context_features": model.head.context_features,
        "vocabulary": len(run.vocabulary),
        "tokens": len(text.loss),
        "loss_nats": float(text.loss.mean()),
        "perplexity": math.exp(min(text.loss.mean(), 700.0)),
        **_use(text, run.vocabulary),
        **_entropies(text, run.vocabulary, counts),
        "posterior": _concentration(text),
        "divergence": {
            "measure": "jensen-shannon",
            "contexts": len(text.positions),
            "mean_nats": differences.jensen_shannon.tolist(),
            "largest_nats": math.log(2),
            "information_nats": float(differences.information.mean()),
        },
        "contexts": _examples(text, model.head, differences.information.numpy(), tokens, run.vocabulary),
        "gain": _gains(run, text, corpus, split, control, device, counts, display),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": str(device),
        "elapsed_s": round(time.perf_counter() - began, 3),
    }
    keep(run, COMPONENTS_FILE, result)
    return {"run": str(run.path)} | result


def check_has_components(run: RunFolder) -> None:
    """Raises UserError if the head of a run has no components to look at."""
    head = run.config.model.head
    if head == "softmax":
        raise UserError(f"{run.path}: its head is one softmax, which has no components; take a mixture of softmaxes")
    if head == "mixture-of-contexts":
        raise UserError(
            f"{run.path}: its head mixes contexts before one softmax: they have weights, but no distributions of their "
            "own, so posteriors, divergence, preferred words and gains are not defined; take a mixture of softmaxes"
        )


def check_same_vocabulary(run: RunFolder, control: RunFolder) -> None:
    if run.vocabulary.words != control.vocabulary.words:
        raise UserError(
            f"{control.path}: another vocabulary ({len(control.vocabulary):,} words) than that of {run.path} "
            f"({len(run.vocabulary):,}), so losses cannot be compared token by token"
        )


def _use(text: TextStatistics, vocabulary: Vocabulary) -> dict[str, Any]:
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


def _entropies(text: TextStatistics, vocabulary: Vocabulary, counts: NDArray[np.int64]) -> dict[str, Any]:
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


def _concentration(text: TextStatistics) -> dict[str, Any]:
    return {
        "sorted_mean": np.sort(text.posterior, axis=1)[:, ::-1].mean(0).tolist(),
        "share_below": [{"threshold": t, "share": float((text.posterior < t).mean())} for t in POSTERIORS_BELOW],
    }


def _examples(
    text: TextStatistics, head: Head, information: Floats, tokens: NDArray[np.int32], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
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


def _gains(
    run: RunFolder,
    text: TextStatistics,
    corpus: Corpus,
    split: str,
    control: RunFolder | None,
    device: torch.device | str,
    counts: NDArray[np.int64],
    display: Display,
) -> dict[str, Any]:
    bands = {
        "target_frequency": fixed_bands(counts[text.target], FREQUENCIES),
        **_position_bands(text, run.vocabulary),
        "prior_entropy": equal_bands(text.prior_entropy, ENTROPY_PARTS),
    }
    best = int(text.component_loss.mean(0).argmin())
    likeliest = np.take_along_axis(text.component_loss, text.prior.argmax(1)[:, None], 1)[:, 0]
    found: dict[str, Any] = {
        "best_component": {"component": best} | _gain(text.loss, text.component_loss[:, best], bands),
        "likeliest_component": _gain(text.loss, likeliest, bands),
        "control": None,
    }
    if control is not None:
        stage = control.last_stage()
        model: LanguageModel = control.load_model(stage, device=device)
        other = text_statistics(model, corpus.tokens[split], what=f"control: {split}", display=display).loss
        which = {"run": str(control.path), "stage": stage, "head": control.config.model.head}
        found["control"] = which | _gain(text.loss, other, bands)
    return found


def _gain(loss: Floats, other: Floats, bands: dict[str, Bands]) -> dict[str, Any]:
    return {
        "loss_nats": float(other.mean()),
        "gain_nats": float((other - loss).mean()),
    } | {
        f"by_{name}": over_bands(each, loss_nats=loss, other_loss_nats=other, gain_nats=other - loss)
        for name, each in bands.items()
    }
