"""Tuning dynamic evaluation: successive halving in threads."""

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from highrank.evaluate import (
    DynamicSettings,
    Evaluation,
    GradientStatistics,
    Trial,
    dynamic_evaluate,
    gradient_statistics,
    search,
    search_settings,
)
from highrank.models import LanguageModel
from highrank.progress import SILENT
from tests.parity import small_model
from tests.telling import Telling

START = DynamicSettings(lamb=0.02, lr=0.02)
TOKENS = 450


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return small_model()


@pytest.fixture(scope="module")
def text(model: LanguageModel) -> NDArray[np.int32]:
    return (np.arange(TOKENS) ** 2 % 7 % model.vocab_size).astype(np.int32)


@pytest.fixture(scope="module")
def statistics(model: LanguageModel, text: NDArray[np.int32]) -> GradientStatistics:
    return gradient_statistics(model, text, batch=10)


@pytest.fixture(scope="module")
def trials(model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics) -> list[Trial]:
    return search_settings(model, text, statistics, START, threads=1)


def test_the_result_is_the_same_however_many_threads_share_the_work(
    model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics, trials: list[Trial]
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    assert search_settings(model, text, statistics, START, threads=3) == trials
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_who_goes_on_is_who_was_better(
    model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics, trials: list[Trial]
) -> None:
    assert len({trial.settings for trial in trials}) == 25
    assert [trial.tokens for trial in trials] == [TOKENS] * 3 + [TOKENS // 3] * 6 + [TOKENS // 9] * 16
    whole = [trial.loss_nats for trial in trials[:3]]
    assert whole == sorted(whole)
    best, later = trials[0], trials[3:]
    assert best.loss_nats == pytest.approx(dynamic_evaluate(model, text, statistics, best.settings).loss_nats, rel=1e-9)
    beginning = text[: TOKENS // 9]
    of_the_best = dynamic_evaluate(model, beginning, statistics, best.settings).loss_nats
    assert of_the_best <= min(trial.loss_nats for trial in later if trial.tokens == len(beginning)) + 1e-9


def test_a_short_text_has_fewer_rounds(
    model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics
) -> None:
    trials = search_settings(model, text[:60], statistics, START._replace(lamb=0.0), threads=2)
    assert [trial.tokens for trial in trials] == [60] * 5, "lamb 0 stays 0: five settings, all on the whole text"


def test_a_lost_loss_comes_last(model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics) -> None:
    trials = search_settings(model, text[:60], statistics, START._replace(lr=1e307), threads=1)
    assert trials[-1].loss_nats == math.inf


def test_trials_share_the_trained_weights_and_are_no_more_than_find_room(
    model: LanguageModel,
    text: NDArray[np.int32],
    statistics: GradientStatistics,
    trials: list[Trial],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: dict[int, list[int]] = {}

    def noted(model: LanguageModel, *arguments: Any, **options: Any) -> Evaluation:
        used[id(model)] = [parameter.data_ptr() for parameter in model.parameters()]
        return dynamic_evaluate(model, *arguments, **options)

    one_trial = 6 * sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr(search, "dynamic_evaluate", noted)
    monkeypatch.setattr(search, "_processors", lambda model: 8)
    monkeypatch.setattr(search, "total_memory", lambda device: 2 * 3 * one_trial)
    told = Telling()
    assert search_settings(model, text, statistics, START, display=told) == trials
    assert told.messages[0] == "search: 25 settings, 3 at once"
    assert 1 <= len(used) <= 3
    trained = [parameter.data_ptr() for parameter in model.parameters()]
    assert all(weights == trained for weights in used.values())


def test_a_model_that_cannot_be_copied_is_told_as_it_is(
    model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> LanguageModel:
        raise MemoryError("no room for a model")

    monkeypatch.setattr("copy.deepcopy", full)
    with pytest.raises(MemoryError, match="no room for a model"):
        search_settings(model, text, statistics, START, threads=2)


def test_an_interrupt_ends_the_trials(
    model: LanguageModel, text: NDArray[np.int32], statistics: GradientStatistics
) -> None:
    class Interrupting(type(SILENT)):  # type: ignore[misc]
        def message(self, text: str) -> None:
            if text.startswith("search: lr"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_settings(model, text, statistics, START, threads=2, display=Interrupting())
    assert not any(thread.name.startswith("search") for thread in threading.enumerate())
