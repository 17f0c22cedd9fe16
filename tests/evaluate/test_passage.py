"""A passage is read as the evaluations read it: the same losses, word by word, before and after learning."""

from typing import Any

import numpy as np
import pytest
import torch

from highrank.errors import UserError
from highrank.evaluate import DynamicSettings, dynamic_evaluate, evaluate, gradient_statistics, line_start, read_passage
from tests.parity import small_model

TEXT = np.random.default_rng(3).integers(0, 11, 60).astype(np.int32)


def mean_loss(passage: Any, side: str) -> float:
    return float(getattr(passage, side).met.surprisal.double().mean())


def test_the_whole_text_is_static_and_dynamic_evaluation() -> None:
    model = small_model()
    text = TEXT % model.vocab_size
    settings = DynamicSettings(lamb=0.05, lr=0.01)
    statistics = gradient_statistics(model, text, batch=3, bptt=5)
    weights = [parameter.clone() for parameter in model.parameters()]
    passage = read_passage(model, text, start=1, length=1000, adaptation=(statistics, settings))
    assert passage.words == text[1:].tolist()
    assert mean_loss(passage, "before") == pytest.approx(evaluate(model, text).loss_nats, abs=1e-5)
    dynamic = dynamic_evaluate(model, text, statistics, settings).loss_nats
    assert mean_loss(passage, "after") == pytest.approx(dynamic, abs=1e-5)
    assert abs(mean_loss(passage, "after") - mean_loss(passage, "before")) > 1e-3, "nothing was learnt"
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize(("start", "length"), [(1, 1), (4, 7), (6, 5), (37, 23), (59, 1), (59, 9)])
def test_a_part_is_a_part_of_the_whole(start: int, length: int) -> None:
    """Wherever it begins in a segment: all the text before has been read."""
    model = small_model()
    text = TEXT % model.vocab_size
    adaptation = (gradient_statistics(model, text, batch=3, bptt=5), DynamicSettings(lamb=0.05, lr=0.01))
    whole = read_passage(model, text, start=1, length=1000, adaptation=adaptation)
    part = read_passage(model, text, start=start, length=length, adaptation=adaptation)
    chosen = slice(start - 1, start - 1 + length)
    assert part.words == whole.words[chosen]
    for ours, theirs in ((part.before, whole.before), (part.after, whole.after)):
        assert ours is not None
        assert theirs is not None
        assert ours.met is not None
        assert theirs.met is not None
        torch.testing.assert_close(ours.met.surprisal, theirs.met.surprisal[chosen])
        torch.testing.assert_close(ours.prior, theirs.prior[chosen])


@pytest.mark.parametrize("lr", [100.0, 1e38], ids=["garbage", "not a number"])
def test_a_loss_that_is_lost_on_the_way_is_no_passage(lr: float) -> None:
    model = small_model()
    text = TEXT % model.vocab_size
    statistics = gradient_statistics(model, text, batch=3, bptt=5)
    adaptation = (statistics, DynamicSettings(lr=lr, epsilon=1e-6, lamb=0))
    with pytest.raises(UserError, match="the loss is lost"):
        read_passage(model, text, start=40, length=20, adaptation=adaptation)


@pytest.mark.parametrize("training", [True, False])
def test_dropouts_are_off_and_the_mode_comes_back(training: bool) -> None:
    expected = read_passage(small_model(), TEXT % 5, start=1, length=20).before
    model = small_model(dropout=0.4).train(training)
    found = read_passage(model, TEXT % 5, start=1, length=20).before
    assert found.met is not None
    assert expected.met is not None
    torch.testing.assert_close(found.met.surprisal, expected.met.surprisal)
    assert all(module.training == training for module in model.modules())


def test_a_passage_begins_with_a_line() -> None:
    text = np.array([5, 6, 0, 7, 8, 0, 9], dtype=np.int32)
    assert [line_start(text, wanted, 0) for wanted in range(8)] == [3, 3, 3, 3, 6, 6, 6, 6]
    assert line_start(text, 2, None) == 2
    assert line_start(text, 1, 0, within=1) == 1


@pytest.mark.parametrize("start", [0, -1, 60])
def test_a_place_outside_the_text_is_refused(start: int) -> None:
    with pytest.raises(UserError, match="expected a position from 1 to 59"):
        read_passage(small_model(), TEXT % 5, start=start, length=5)
