"""A run evaluated at a temperature, given or tuned on its validation text, and recorded apart from plain figures."""

from typing import Any, Literal

import torch

from highrank.data import Corpus
from highrank.errors import UserError
from highrank.evaluate.of_run import as_result, recording
from highrank.evaluate.temperature import TemperatureSearch, check_temperature, evaluate_at, tune_temperature
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.runs import ModelStamp, RunFolder, writing
from highrank.workers import ALONE, Workers

__all__ = ["TUNED_ON", "evaluate_run_at", "tune_temperature_of"]

TUNED_ON = "valid"


def evaluate_run_at(
    run: RunFolder,
    corpus: Corpus,
    split: str,
    temperature: float | Literal["tune"],
    *,
    stage: str | None = None,
    batch: int = 1,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Loss and perplexity of the best model of a stage on a split at a ``temperature``.

    "tune": at that of the lowest loss on the validation text, which may not be the split. Recorded if exact (batch 1),
    as ``tempered`` of the stage in results.json, with the temperature and where it came from; of one temperature, so
    that another one takes its place. ``untempered``: the loss at 1, of the same pass.
    Raises UserError for a temperature below 0.001, or one tuned on the split; NotRecordedError, with the result, where
    the run cannot be written.
    """
    workers.first(lambda: _check(temperature, split))
    run.check_corpus(corpus)
    stamp, model = run.stamped_model(stage, device=device, workers=workers)
    stage = stamp.stage
    settings: dict[str, Any] = {"temperature": temperature, "tuned_on": None}
    if temperature == "tune":
        search = tune_temperature_of(run, model, corpus, display=display, workers=workers)
        settings = {
            "temperature": search.temperature,
            "tuned_on": TUNED_ON,
            "search": [{"temperature": at, "loss_nats": loss} for at, loss in search.loss_nats.items()],
        }
    tempered, untempered = evaluate_at(
        model,
        corpus.tokens[split],
        (settings["temperature"], 1.0),
        batch=batch,
        what=f"{stage}: {split} at temperature {settings['temperature']:g}",
        display=display,
        workers=workers,
    )
    figures = as_result(tempered) | {"batch": batch, "counted": "every predicted token"}
    plain = {"loss_nats": untempered.loss_nats, "perplexity": untempered.perplexity}
    result = {"run": str(run.path), "stage": stage, "split": split} | settings | figures | {"untempered": plain}

    def record() -> None:
        with recording(result):
            _record(run, stamp, settings, {split: figures}, display)

    if batch == 1:
        workers.first(record)
    return result


def _check(temperature: float | Literal["tune"], split: str) -> None:
    if temperature != "tune":
        check_temperature(temperature)
    elif split == TUNED_ON:
        raise UserError(
            f"temperature: one that is tuned on the {split} text says nothing there: give another split, or a number",
            exit_code=2,
        )


def tune_temperature_of(
    run: RunFolder, model: LanguageModel, corpus: Corpus, *, display: Display = SILENT, workers: Workers = ALONE
) -> TemperatureSearch:
    """The temperature of the lowest loss on the validation text, which is walked in the columns of training: at batch 1
    a search would take as long as the evaluation that it is for."""
    return tune_temperature(
        model,
        corpus.tokens[TUNED_ON],
        batch=run.config.train.valid_batch,
        what=f"temperature on {TUNED_ON}",
        display=display,
        workers=workers,
    )


def _record(
    run: RunFolder, of: ModelStamp, settings: dict[str, Any], figures: dict[str, Any], display: Display
) -> None:
    """Beside that of another split, if it is of the same temperature."""
    with writing(run.path):
        recorded = run.results.get(of.stage, {}).get("tempered", {})
        same = all(recorded.get(name) == settings[name] for name in ("temperature", "tuned_on"))
        tempered = (recorded if same else {}) | settings | figures
        run.add_result(of.stage, {"tempered": tempered}, of=of, notice=display.message)
