"""Evaluation: the mean over every predicted token, however the text is cut, and the original's way of counting."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import textbook
from benchmarks.harness import memory_of
from highrank import LossOptions
from highrank.data.batches import Columns
from highrank.errors import UserError
from highrank.evaluate import Evaluation, evaluate
from highrank.evaluate.held_out import read_text
from highrank.models import Dropout
from highrank.progress import Pace
from tests.parity import small_model, textbook_twin
from tests.telling import Telling


def text(length: int, seed: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(17, size=length, dtype=np.int32)


@pytest.mark.parametrize(("batch", "length"), [(1, 301), (1, 2), (2, 4), (4, 303), (10, 1000), (7, 20)])
def test_is_the_textbook_evaluation(batch: int, length: int) -> None:
    model, tokens = small_model(), text(length)
    twin, exact = textbook_twin(model), evaluate(model, tokens, batch=batch)
    as_tensor = torch.from_numpy(tokens.astype(np.int64))
    assert exact.tokens == batch * (length // batch - 1)
    assert exact.loss_nats == pytest.approx(textbook.evaluate(twin, as_tensor, batch), rel=1e-11)
    assert exact.perplexity == pytest.approx(math.exp(exact.loss_nats), rel=1e-12)
    paper = exact.in_the_paper_way(batch)
    assert paper.loss_nats == pytest.approx(textbook.evaluate_paper(twin, as_tensor, batch), rel=1e-11)
    assert paper.perplexity == pytest.approx(math.exp(paper.loss_nats), rel=1e-12)
    assert paper.loss_nats < exact.loss_nats


def test_a_text_that_is_being_read_leaves_gradients_to_the_caller() -> None:
    reading = read_text(small_model(), Columns(text(301), 1, what="text"), 10)
    _, hidden_TBH = next(reading)
    assert torch.is_grad_enabled()
    assert not hidden_TBH.requires_grad


@pytest.mark.parametrize("batch", [1, 3])
def test_the_cut_into_segments_changes_nothing(batch: int) -> None:
    model, tokens = small_model(), text(100)
    whole = evaluate(model, tokens, batch=batch, segment=1000)
    for segment in (0, 1, 2, 7, 32, 33, 98, 99):
        part = evaluate(model, tokens, batch=batch, segment=segment)
        assert part.tokens == whole.tokens
        assert part.loss_nats == pytest.approx(whole.loss_nats, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_dropouts_are_off_and_the_mode_comes_back(training: bool) -> None:
    model = small_model(dropout=0.4).train(training)
    loss = evaluate(model, text(60)).loss_nats
    assert loss == pytest.approx(evaluate(small_model(), text(60)).loss_nats, rel=1e-12)
    assert all(module.training == training for module in model.modules())
    assert any(isinstance(module, Dropout) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_text_too_short_for_the_batch_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"^valid\.txt: 15 tokens are too few for a batch of 8 columns, .* at least 16; .*$"
    ):
        evaluate(small_model(), text(15), batch=8, what="valid.txt")
    assert evaluate(small_model(), text(16), batch=8).tokens == 8


def test_a_loss_that_no_perplexity_can_be_told_of() -> None:
    evaluation = Evaluation.of(1000.0, 7, 0.0)
    assert evaluation.loss_nats == 1000.0
    assert math.isfinite(evaluation.perplexity)
    assert math.isfinite(evaluation.in_the_paper_way(1).perplexity)


def test_memory_is_that_of_a_segment() -> None:
    """Not of the text, and not of tokens x components x classes."""
    model = small_model(4000)
    tokens = np.random.default_rng(1).integers(4000, size=4001, dtype=np.int32)
    used = memory_of(lambda: evaluate(model, tokens, batch=4))
    segment = 1024 * 4 * 4000 * 8  # tokens at once, components, classes, float64
    block = LossOptions().block_bytes_for("cpu", 4000, 6)
    assert used.largest_bytes <= block < segment / 2
    assert used.peak_bytes < 1.25 * block


def test_progress_ends_at_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_due", lambda self: True)
    display = Telling()
    evaluation = evaluate(small_model(), text(50), batch=2, segment=10, what="test", display=display)
    assert display.shown == [("test", done, 48, "tokens") for done in (20, 40, 48, 48)]
    assert display.losses[-2:] == pytest.approx([evaluation.loss_nats] * 2, rel=1e-12)
