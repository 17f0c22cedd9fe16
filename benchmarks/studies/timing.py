"""What the parts of a trial cost, variant beside variant in one process, and what a whole trial costs by that."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.bench_dynamic_evaluation import our_segments
from benchmarks.bench_train_step import our_step
from benchmarks.harness import code_commit, in_turn, machine, summary
from benchmarks.studies.plan import Stage, Study, Trial
from highrank.data import Corpus
from highrank.data.batches import SHORTEST_TRAINING_COLUMN, Columns
from highrank.evaluate import evaluate, gradient_statistics
from highrank.runs import Config, build_model, estimate
from highrank.train import corpus_for

__all__ = ["expected_cpu_s", "time_variants"]

UPDATES = 4  # of a measurement; one has some tens of milliseconds
EVALUATED_TOKENS = 1000
SEGMENTS = 4


def time_variants(study: Study, only: Sequence[str], data: str, *, repeats: int) -> dict[str, dict[str, Any]]:
    """Of each variant the processor time of an update, and of what the study's later stages are made of.

    In turn, on one thread, in seconds; medians with the 20th and 80th percentile. Processor time, so that other work
    on the machine costs less than it would of the time on the wall.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trials = study.trials(only=only, seeds=study.seeds[:1])
        corpora = {trial.variant.name: corpus_for(trial.config, data) for trial in trials}
        calls = {
            (trial.variant.name, part): call
            for trial in trials
            for part, call in _parts(trial, corpora[trial.variant.name]).items()
        }
        seconds = in_turn(
            {f"{variant} {part}": call for (variant, part), call in calls.items()}, repeats, clock=time.process_time
        )
    finally:
        torch.set_num_threads(threads)
    times: dict[str, dict[str, Any]] = {}
    for trial in trials:
        name = trial.variant.name
        shares = {"update": UPDATES, "validation": EVALUATED_TOKENS, "evaluation": EVALUATED_TOKENS}
        parts = {
            part: summary([each / shares.get(part, SEGMENTS) for each in seconds[f"{name} {part}"]])
            for variant, part in calls
            if variant == name
        }
        medians = {part: figures["median_s"] for part, figures in parts.items()}
        times[name] = {
            "overrides": list(trial.overrides[:-1]),
            "update_s": parts["update"],
            "tokens_an_update": trial.config.train.batch * trial.config.train.bptt,
            "parts_s": {part: figures for part, figures in parts.items() if part != "update"},
            "expected_cpu_s": expected_cpu_s(trial, corpora[name], medians),
            "repeats": repeats,
            "commit": code_commit(),
            "date": time.strftime("%Y-%m-%d"),
            "device": machine(threads=1),
        }
    return times


def expected_cpu_s(trial: Trial, corpus: Corpus, median_s: Mapping[str, float]) -> dict[Stage, float]:
    """Of the stages of a trial, with the evaluation of each one's model on both splits, by the times of their parts:
    an update, a predicted token in validation and in evaluation, a segment of statistics and of dynamic evaluation."""
    config = trial.config
    held_out = len(corpus.tokens["valid"]) + len(corpus.tokens["test"])
    epoch_s = estimate(config, corpus)["updates_per_epoch"] * median_s["update"]
    epoch_s += len(corpus.tokens["valid"]) * median_s["validation"]
    evaluated_s = held_out * median_s["evaluation"]
    expected: dict[Stage, float] = {"train": config.train.epochs * epoch_s + evaluated_s}
    if "finetune" in trial.stages:
        expected["finetune"] = config.finetune.epochs * epoch_s + evaluated_s
    if "dynamic-eval" in trial.stages:
        batch, bptt = _statistics_batch(config, corpus), config.dynamic.bptt
        segments = len(corpus.tokens["train"]) / batch / bptt
        expected["dynamic-eval"] = segments * median_s["statistics"] + held_out / bptt * median_s["dynamic"]
    return {stage: round(seconds, 1) for stage, seconds in expected.items()}


def _parts(trial: Trial, corpus: Corpus) -> dict[str, Callable[[], object]]:
    """What is measured of a variant, by name."""
    config, tokens, words = trial.config, corpus.tokens, len(corpus.vocabulary)
    columns = Columns(tokens["train"], config.train.batch)
    update = our_step(build_model(config, words), config, columns, averaging=config.train.average_from > 0)
    model = build_model(config, words)
    valid = tokens["valid"][: EVALUATED_TOKENS + 1]
    parts: dict[str, Callable[[], object]] = {
        "update": partial(_repeated, update, UPDATES),
        "validation": partial(evaluate, model, valid, batch=config.train.valid_batch),
        "evaluation": partial(evaluate, model, valid),
    }
    if "dynamic-eval" in trial.stages:
        batch, bptt = _statistics_batch(config, corpus), config.dynamic.bptt
        some = tokens["train"][: batch * (SEGMENTS * bptt + 1)]
        # The validation text again and again, for as long as it is asked for.
        walk = itertools.chain.from_iterable(
            our_segments(config, words, tokens["valid"], "cpu") for _ in itertools.count()
        )
        parts["statistics"] = partial(gradient_statistics, model, some, batch=batch, bptt=bptt)
        parts["dynamic"] = partial(_repeated, partial(next, walk), SEGMENTS)
    return parts


def _repeated(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _statistics_batch(config: Config, corpus: Corpus) -> int:
    return min(config.dynamic.batch, max(1, len(corpus.tokens["train"]) // SHORTEST_TRAINING_COLUMN))
