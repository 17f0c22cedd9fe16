"""Evaluating a run: its model, its text, its cached statistics, and results that are kept with it."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from highrank.data import Corpus
from highrank.data.batches import SHORTEST_TRAINING_COLUMN
from highrank.errors import NotRecordedError, UserError
from highrank.evaluate.adaptation import DynamicSettings, GradientStatistics
from highrank.evaluate.dynamic import dynamic_evaluate, gradient_statistics
from highrank.evaluate.perplexity import Evaluation, evaluate
from highrank.evaluate.search import search_settings
from highrank.files import explained, new_file
from highrank.models import LanguageModel
from highrank.progress import SILENT, Display
from highrank.runs import ModelStamp, RunFolder, parse_config, writing
from highrank.runs.config import DynamicSection
from highrank.runs.listing import dynamic_figures
from highrank.runs.records import Result
from highrank.runs.tensors import read_tensors, write_tensors
from highrank.workers import ALONE, Workers

__all__ = [
    "as_result",
    "cached_statistics",
    "dynamic_evaluate_run",
    "dynamic_settings",
    "evaluate_run",
    "has_dynamic_result",
    "known_statistics",
    "prepare_statistics",
    "recording",
    "scored_settings",
]

PAPER_BATCH = {"train": 10, "valid": 10, "test": 1}


def evaluate_run(
    run: RunFolder,
    corpus: Corpus,
    split: str,
    *,
    stage: str | None = None,
    batch: int = 1,
    paper: bool = False,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Loss and perplexity of the best model of a stage on a split; recorded if exact (batch 1, every token).

    ``paper``: the original's batches (10 for validation, 1 for test) and its way of counting, which is a little low.
    Raises NotRecordedError, with the result, where the run cannot be written.
    """
    run.check_corpus(corpus)
    stamp, model = run.stamped_model(stage, device=device, workers=workers)
    stage = stamp.stage
    batch = PAPER_BATCH[split] if paper else batch
    evaluation = evaluate(
        model, corpus.tokens[split], batch=batch, what=f"{stage}: {split}", display=display, workers=workers
    )
    if paper:
        evaluation = evaluation.in_the_paper_way(batch)
    figures = as_result(evaluation) | {"batch": batch, "counted": "paper" if paper else "every predicted token"}
    result = {"run": str(run.path), "stage": stage, "split": split} | figures

    def record() -> None:
        with recording(result):
            run.add_result(stage, {split: figures}, of=stamp, notice=display.message)

    if batch == 1 and not paper:
        workers.first(record)
    return result


@contextmanager
def recording(result: dict[str, Any]) -> Iterator[None]:
    """Inside, what the run cannot take raises NotRecordedError, with the whole result: it may have taken hours."""
    try:
        yield
    except UserError as error:
        raise NotRecordedError(error, result) from error


def dynamic_settings(
    run: RunFolder, *, weight_dropout_seed: int | None = None, **overrides: float | None
) -> DynamicSettings:
    """The run's settings, with those of ``overrides`` that are not None on top, checked alike."""
    values = msgspec.to_builtins(run.config)
    values["dynamic"] |= {name: value for name, value in overrides.items() if value is not None}
    section = parse_config(values, source="dynamic evaluation").dynamic
    return DynamicSettings(
        section.lamb, section.lr, section.epsilon, section.bptt, section.mean_square, weight_dropout_seed
    )


def scored_settings(run: RunFolder, stage: str) -> DynamicSettings:
    """Those that the recorded dynamic evaluation of the stage was made with, after a search perhaps; else the run's."""
    recorded = run.results.get("dynamic", {})
    chosen = recorded.get("settings", {}) if recorded.get("stage") == stage else {}
    return dynamic_settings(run, **{name: chosen.get(name) for name in DynamicSection.__struct_fields__})


def dynamic_evaluate_run(
    run: RunFolder,
    corpus: Corpus,
    splits: Sequence[str],
    settings: DynamicSettings,
    *,
    stage: str | None = None,
    search_tokens: int = 0,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
) -> dict[str, Any]:
    """Dynamic evaluation of the best model of a stage on ``splits``; recorded after each of them.

    With ``search_tokens`` lr and lamb are tuned on so many tokens of the validation text first. The recorded
    ``elapsed_s`` is that of statistics (unless cached), search and evaluation together. Raises NotRecordedError, with
    the result, where the run cannot be written.
    """
    began = time.perf_counter()
    run.check_corpus(corpus)
    part = corpus.tokens["valid"][:search_tokens]
    if search_tokens and len(part) < 2:
        raise UserError(f"search: expected two tokens of the validation text or more, got {len(part)}", exit_code=2)
    stamp, model = run.stamped_model(stage, device=device)
    stage = stamp.stage
    statistics = cached_statistics(run, stamp, model, corpus, settings, display)
    result: dict[str, Any] = {"run": str(run.path), "stage": stage}
    if search_tokens:
        trials = search_settings(model, part, statistics, settings, display=display)
        if trials[0].loss_nats == float("inf"):
            raise UserError(
                f"search: the loss was lost with every setting around lr {settings.lr:g} and lamb {settings.lamb:g}; "
                "start from a lower --lr"
            )
        settings = trials[0].settings
        display.message(f"search: best with --lr {settings.lr!r} --lamb {settings.lamb!r}")
        result["search"] = [
            {"lr": trial.settings.lr, "lamb": trial.settings.lamb, "tokens": trial.tokens, "loss_nats": trial.loss_nats}
            for trial in trials
            if trial.loss_nats != float("inf")
        ]
    result["settings"] = settings._asdict()
    result["statistics_batch"] = run.config.dynamic.batch
    unrecorded: UserError | None = None
    for split in splits:
        evaluation = dynamic_evaluate(
            model, corpus.tokens[split], statistics, settings, what=f"dynamic evaluation: {split}", display=display
        )
        result[split] = as_result(evaluation)
        if settings.weight_dropout_seed is None:
            try:
                _record(run, stamp, result, settings, time.perf_counter() - began, display)
                began, unrecorded = time.perf_counter(), None
            except UserError as error:  # the next split takes this one along, or tells it
                unrecorded = error
    if unrecorded is not None:
        raise NotRecordedError(unrecorded, result) from unrecorded
    return result


def _record(
    run: RunFolder,
    of: ModelStamp,
    result: dict[str, Any],
    settings: DynamicSettings,
    elapsed_s: float,
    display: Display,
) -> None:
    """Add the splits of ``result`` to those that were recorded with the same settings, or put it in their place."""
    with writing(run.path):
        earlier = run.results.get("dynamic", {})
        goes_on = has_dynamic_result(run, of.stage, settings)
        before_s = earlier.get("elapsed_s", 0.0) if goes_on else 0.0
        recorded = {name: value for name, value in result.items() if name != "run"}
        recorded["elapsed_s"] = round(before_s + elapsed_s, 3)
        is_there = run.add_result("dynamic", recorded, of=of, replace=not goes_on, notice=display.message)
    if is_there and earlier and not goes_on:
        _say_what_went(run, earlier, settings, display)


def _say_what_went(run: RunFolder, earlier: Result, settings: DynamicSettings, display: Display) -> None:
    """A run has one dynamic evaluation; the figures of another model or other settings made room for it."""
    went, now = dynamic_figures(earlier), settings._asdict()
    other = [f"{name} {value:g}" for name, value in went.settings.items() if now.get(name) != value]
    figures = {"valid": went.valid_perplexity, "test": went.test_perplexity}
    known = ", ".join(f"{split} {value:.2f}" for split, value in figures.items() if value is not None)
    of = f"{went.stage} with {', '.join(other)}" if other else went.stage
    said = f"in place of the dynamic evaluation of {of}: {known or 'no figures'}"
    if "search" in earlier and other:
        options = [f"--{name} {value!r}" for name, value in went.settings.items() if name in ("lr", "lamb")]
        said += f"; what its search had found: {' '.join(options)}"
    run.log(said)
    display.message(said)


def prepare_statistics(
    run: RunFolder,
    corpus: Corpus,
    settings: DynamicSettings,
    *,
    stage: str | None = None,
    device: torch.device | str = "cpu",
    display: Display = SILENT,
    workers: Workers = ALONE,
) -> None:
    """Let several ``workers`` compute the gradient statistics that ``dynamic_evaluate_run`` will find in the run."""
    if workers.count == 1:
        return  # it computes them itself
    run.check_corpus(corpus)
    stamp, model = run.stamped_model(stage, device=device, workers=workers)
    # The answer is sent to all, not the statistics, which are as large as the model.
    if not workers.first(lambda: known_statistics(run, stamp, model, corpus, settings, display=display) is not None):
        _new_statistics(run, stamp, model, corpus, settings, display, workers)


def known_statistics(
    run: RunFolder,
    of: ModelStamp,
    model: LanguageModel,
    corpus: Corpus,
    settings: DynamicSettings,
    *,
    display: Display = SILENT,
) -> GradientStatistics | None:
    """The gradient statistics that an earlier dynamic evaluation left in the run, if one did. ``model`` is that of the
    stamp, which was taken before it was loaded."""
    return _read_statistics(_statistics_file(run, of, corpus, settings)[0], model, display)


def has_dynamic_result(run: RunFolder, stage: str, settings: DynamicSettings, *splits: str) -> bool:
    """Is the recorded dynamic evaluation of this stage, with these settings, and has it these splits?"""
    recorded = run.results.get("dynamic", {})
    batch = run.config.dynamic.batch  # which earlier versions did not record
    found = recorded.get("stage"), recorded.get("settings"), recorded.get("statistics_batch", batch)
    same = found == (stage, settings._asdict(), batch)
    return same and all(split in recorded for split in splits)


def cached_statistics(
    run: RunFolder,
    of: ModelStamp,
    model: LanguageModel,
    corpus: Corpus,
    settings: DynamicSettings,
    display: Display,
) -> GradientStatistics:
    """The pass over the training text, once for a model, a text and its settings; then it is read from the run.

    ``model`` is that of the stamp, which was taken before it was loaded.
    """
    known = known_statistics(run, of, model, corpus, settings, display=display)
    return _new_statistics(run, of, model, corpus, settings, display, ALONE) if known is None else known


def _new_statistics(
    run: RunFolder,
    of: ModelStamp,
    model: LanguageModel,
    corpus: Corpus,
    settings: DynamicSettings,
    display: Display,
    workers: Workers,
) -> GradientStatistics:
    path, batch = _statistics_file(run, of, corpus, settings)
    statistics = gradient_statistics(
        model,
        corpus.tokens["train"],
        batch=batch,
        bptt=settings.bptt,
        weight_dropout_seed=settings.weight_dropout_seed,
        display=display,
        workers=workers,
    )
    workers.first(lambda: _write_statistics(run, path, statistics, display))
    return statistics


def _statistics_file(run: RunFolder, of: ModelStamp, corpus: Corpus, settings: DynamicSettings) -> tuple[Path, int]:
    """Where the statistics of a model, a text and its settings are kept, and the batch of their pass."""
    tokens = corpus.tokens["train"]
    batch = min(run.config.dynamic.batch, max(1, len(tokens) // SHORTEST_TRAINING_COLUMN))  # for very short texts
    facts = [
        of.sha256,
        corpus.sha256["train"],
        len(tokens),
        batch,
        settings.bptt,
        settings.weight_dropout_seed,
    ]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return run.statistics_path(of.stage, key), batch


def _read_statistics(path: Path, model: LanguageModel, display: Display) -> GradientStatistics | None:
    if not path.exists():
        return None
    try:
        tensors = read_tensors(path)
        segments = tensors.pop("segments", torch.zeros(0))
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes or segments.numel() != 1:
            raise UserError(f"{path}: not the statistics of this model")
    except UserError as error:
        display.message(f"computing the gradient statistics again: {path} cannot be used ({error})")
        return None
    device = next(model.parameters()).device
    return GradientStatistics({name: tensor.to(device) for name, tensor in tensors.items()}, int(segments))


def _write_statistics(run: RunFolder, path: Path, statistics: GradientStatistics, display: Display) -> None:
    try:
        with writing(run.path), explained(path), new_file(path) as temporary:
            write_tensors(temporary, {**statistics.squares, "segments": torch.tensor(statistics.segments)})
    except UserError as error:
        display.message(f"the gradient statistics are not kept, another evaluation computes them again: {error}")


def as_result(evaluation: Evaluation) -> dict[str, Any]:
    """As it is told and recorded."""
    return {
        "loss_nats": evaluation.loss_nats,
        "perplexity": evaluation.perplexity,
        "tokens": evaluation.tokens,
        "elapsed_s": round(evaluation.elapsed_s, 3),
    }
