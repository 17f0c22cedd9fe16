"""The components of a run's mixture over a text, as figures that are kept with the run."""

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from highrank.data import Corpus, word_counts
from highrank.errors import UserError
from highrank.evaluate.bands import Bands
from highrank.evaluate.component_figures import concentration, entropies, examples, gain_bands, gain_over, gains, use
from highrank.evaluate.components import TextStatistics, component_differences, text_statistics
from highrank.evaluate.of_run import recording
from highrank.perplexity import perplexity
from highrank.progress import SILENT, Display
from highrank.runs import RunFolder
from highrank.runs.measured import COMPONENTS_FILE

__all__ = ["components_run"]

CONTEXTS = 512  # in which whole distributions are compared


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

    Raises UserError: the head has no components, or the control has another vocabulary; NotRecordedError, with the
    result, where the run cannot be written.
    """
    began = time.perf_counter()
    run.check_corpus(corpus)
    check_has_components(run)
    if control is not None:
        check_same_vocabulary(run, control)
    stamp, model = run.stamped_model(stage, device=device)
    tokens = corpus.tokens[split]
    text = text_statistics(model, tokens, contexts=CONTEXTS, what=f"components: {split}", display=display)
    differences = component_differences(model.head, text.hidden, display=display)
    counts = word_counts(corpus)
    bands = gain_bands(text, run.vocabulary, counts)
    against = None
    if control is not None:
        against = _against(control, text, tokens, bands, f"control: {split}", device, display)
    figures = {
        "format": 1,
        "stage": stamp.stage,
        "split": split,
        "model_sha256": stamp.sha256,
        "head": run.config.model.head,
        "num_components": text.prior.shape[1],
        "context_features": model.head.context_features,
        "vocabulary": len(run.vocabulary),
        "tokens": len(text.loss),
        "loss_nats": float(text.loss.mean()),
        "perplexity": perplexity(float(text.loss.mean())),
        **use(text, run.vocabulary),
        **entropies(text, run.vocabulary, counts),
        "posterior": concentration(text),
        "divergence": {
            "measure": "jensen-shannon",
            "contexts": len(text.positions),
            "mean_nats": differences.jensen_shannon.tolist(),
            "largest_nats": math.log(2),
            "information_nats": float(differences.information.mean()),
        },
        "contexts": examples(text, model.head, differences.information.numpy(), tokens, run.vocabulary),
        "gain": gains(text, bands) | {"control": against},
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": str(device),
        "elapsed_s": round(time.perf_counter() - began, 3),
    }
    result = {"run": str(run.path)} | figures
    with recording(result):
        run.write_figures(COMPONENTS_FILE, figures, of=stamp, notice=display.message)
    return result


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
    if difference := run.vocabulary.difference(control.vocabulary):
        raise UserError(
            f"{control.path}: another vocabulary than that of {run.path} ({difference}), so losses cannot be compared "
            "token by token"
        )


def _against(
    control: RunFolder,
    text: TextStatistics,
    tokens: NDArray[np.int32],
    bands: dict[str, Bands],
    what: str,
    device: torch.device | str,
    display: Display,
) -> dict[str, Any]:
    """What the mixture gains over the best model of another run."""
    stage = control.last_stage()
    other = text_statistics(control.load_model(stage, device=device), tokens, what=what, display=display).loss
    which = {"run": str(control.path), "stage": stage, "head": control.config.model.head}
    return which | gain_over(other, text.loss, bands)
