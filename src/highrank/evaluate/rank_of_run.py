"""The rank of a run: the log-probabilities of its best model over held-out contexts, and what is kept of them."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from highrank.data import Corpus
from highrank.errors import UserError
from highrank.evaluate.held_out import evenly_spaced, hidden_states, in_float64
from highrank.evaluate.of_run import recording
from highrank.evaluate.rank import announce_memory, measure_rank
from highrank.heads import Head, MixtureOfSoftmaxes
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.runs import RunFolder
from highrank.runs.measured import RANK_FILE

__all__ = ["log_prob_matrix", "number_of_contexts", "rank_bound", "rank_run"]


def rank_run(
    run: RunFolder,
    corpus: Corpus,
    split: str = "test",
    *,
    contexts: int = 0,
    stage: str | None = None,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
) -> dict[str, Any]:
    """The rank of the best model of a stage over ``contexts`` contexts of a split, evenly spaced; see ``rank``.

    0 contexts: as many as the vocabulary has words, or all of a shorter text. The backbone runs in the model's dtype,
    the head in float64. Returned with ``run``, and without it written to rank.json of the run (format 1):

        format, stage, split, model_sha256 (of the stage's model.safetensors)
        head, num_components, context_features (D), bound (of the head's rank; null for a mixture of softmaxes)
        contexts, vocabulary, numerical_rank, threshold, precision, effective_rank, mean_kl_nats
        ranks: [{relative_threshold, rank}], without those below round-off
        dtype, hidden_dtype, device, elapsed_s
        singular_values: descending; fewer than min(contexts, vocabulary) where the others are below the threshold

    Raises UserError: fewer contexts in the text than asked for, or what ``rank`` raises; NotRecordedError, with the
    result, where the run cannot be written.
    """
    began = time.perf_counter()
    run.check_corpus(corpus)
    stamp, model = run.stamped_model(stage, device=device)
    contexts = number_of_contexts(run, corpus, split, contexts)
    announce_memory(contexts, model.vocab_size, device, display)
    tokens = corpus.tokens[split]
    positions = evenly_spaced(contexts, len(tokens) - 1)
    matrix_NV = log_prob_matrix(model, tokens, positions, what=split, display=display)
    found = measure_rank(matrix_NV, display=display)
    figures = {
        "format": 1,
        "stage": stamp.stage,
        "split": split,
        "model_sha256": stamp.sha256,
        "head": run.config.model.head,
        "num_components": run.config.model.components,
        "context_features": model.head.context_features,
        "bound": rank_bound(model.head),
        **found.as_dict(),
        "hidden_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "elapsed_s": round(time.perf_counter() - began, 3),
    }
    result = {"run": str(run.path)} | figures
    with recording(result):
        run.write_figures(RANK_FILE, figures, of=stamp, notice=display.message)
    return result


def number_of_contexts(run: RunFolder, corpus: Corpus, split: str, asked: int) -> int:
    """How many ``rank_run`` measures where ``asked`` are asked for. Raises UserError if the text has fewer."""
    available = len(corpus.tokens[split]) - 1
    if asked > available:
        raise UserError(f"{run.path}: {split}: {available:,} contexts, fewer than the {asked:,} that were asked for")
    contexts = asked or min(len(run.vocabulary), available)
    if contexts < 2:
        raise UserError(f"{run.path}: {split}: expected at least 2 contexts, got {contexts}")
    return contexts


def rank_bound(head: Head) -> int | None:
    """The highest rank that the log-probabilities of a head can have; None if there is no such bound.

    log p = context @ weight.T + 1 bias.T - normaliser 1.T: D from the product, one each from bias and normaliser. A
    mixture of contexts has one softmax too.
    """
    if isinstance(head, MixtureOfSoftmaxes) and head.num_components > 1:
        return None
    return head.context_features + (1 if head.bias is None else 2)


@torch.no_grad()
def log_prob_matrix(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    positions: NDArray[np.int64],
    *,
    what: str = "text",
    display: Display = SILENT,
) -> Tensor:
    """Log-probabilities (N, V) in float64 after the tokens at ``positions`` (ascending): the head is evaluated in
    float64, from the hidden states on, so that its rank is not buried in the noise of a shorter type."""
    head = in_float64(model.head)
    matrix_NV = torch.empty(
        len(positions), model.vocab_size, dtype=torch.float64, device=next(model.parameters()).device
    )
    done = 0
    for segment, hidden_TH in hidden_states(model, tokens, what):
        last = int(np.searchsorted(positions, segment.start + len(hidden_TH)))
        chosen = torch.from_numpy(positions[done:last] - segment.start).to(hidden_TH.device)
        if last > done:
            matrix_NV[done:last] = head.log_prob(hidden_TH[chosen].double())
        done = last
        display.progress(f"{what}: log-probabilities", done, len(positions), unit="contexts")
        if done == len(positions):
            break
    assert done == len(positions)
    return matrix_NV
