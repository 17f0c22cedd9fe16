"""A run evaluated with a neural cache, whose settings are given or tuned on its validation text; recorded apart."""

from typing import Any

import torch

from highrank.data import Corpus
from highrank.errors import UserError
from highrank.evaluate.cache import DEFAULT_WINDOW, CacheSettings, evaluate_with_cache, tune_cache
from highrank.evaluate.of_run import as_result, recording
from highrank.evaluate.temperature_of_run import TUNED_ON
from highrank.progress import SILENT, Display
from highrank.runs import ModelStamp, RunFolder, writing

__all__ = ["evaluate_run_with_cache"]


def evaluate_run_with_cache(
    run: RunFolder,
    corpus: Corpus,
    split: str,
    *,
    window: int = DEFAULT_WINDOW,
    theta: float | None = None,
    share: float | None = None,
    stage: str | None = None,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
) -> dict[str, Any]:
    """Exact loss and perplexity of the best model of a stage on a split, with a cache of ``window`` positions.

    ``theta`` and ``share`` (both or neither): else those of the lowest loss on the validation text, which may not be
    the split. Recorded as ``cache`` of the stage in results.json, of one setting: another one takes its place.
    ``without_cache``: the loss without, of the same pass.
    Raises UserError for settings that cannot be, NotRecordedError, with the result, where the run cannot be written.
    """
    if (theta is None) != (share is None):
        raise UserError("theta and share: expected both, or neither, to tune them", exit_code=2)
    if theta is None and split == TUNED_ON:
        raise UserError(
            f"theta and share: tuned on the {split} text they say nothing there: give another split, or both",
            exit_code=2,
        )
    run.check_corpus(corpus)
    stamp, model = run.stamped_model(stage, device=device)
    tuned_on = None
    if theta is None or share is None:
        tuned_on = TUNED_ON
        what = f"cache on {TUNED_ON}"
        settings, _ = tune_cache(model, corpus.tokens[TUNED_ON], window=window, what=what, display=display)
    else:
        settings = CacheSettings(window, theta, share)
    with_it, without = evaluate_with_cache(
        model, corpus.tokens[split], settings, what=f"{stamp.stage}: {split} with a cache", display=display
    )
    how = settings._asdict() | {"tuned_on": tuned_on}
    figures = as_result(with_it)
    plain = {"loss_nats": without.loss_nats, "perplexity": without.perplexity}
    result = {"run": str(run.path), "stage": stamp.stage, "split": split} | how | figures | {"without_cache": plain}
    with recording(result):
        _record(run, stamp, how, {split: figures}, display)
    return result


def _record(run: RunFolder, of: ModelStamp, how: dict[str, Any], figures: dict[str, Any], display: Display) -> None:
    """Beside that of another split, if it is of the same settings."""
    with writing(run.path):
        recorded = run.results.get(of.stage, {}).get("cache", {})
        same = all(recorded.get(name) == value for name, value in how.items())
        run.add_result(of.stage, {"cache": (recorded if same else {}) | how | figures}, of=of, notice=display.message)
