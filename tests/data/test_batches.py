"""Columns, segments and their random lengths."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from highrank.data.batches import Columns, segment_length
from highrank.errors import UserError


def text(length: int) -> NDArray[np.int32]:
    return np.arange(length, dtype=np.int32) * 7


@pytest.mark.parametrize(("length", "batch"), [(20, 1), (20, 4), (23, 4), (2, 1), (8, 4), (11, 4)])
def test_columns_are_the_text_in_order_without_the_remainder(length: int, batch: int) -> None:
    tokens, columns = text(length), Columns(text(length), batch)
    assert (columns.batch, columns.length) == (batch, length // batch)
    assert columns.predicted_tokens == batch * (length // batch - 1)
    segment = columns.segment(0, 10**6)
    assert segment.start == 0
    assert segment.tokens.shape == segment.target.shape == (length // batch - 1, batch)
    assert segment.tokens.dtype == segment.target.dtype == torch.int64
    for column in range(batch):
        part = tokens[column * (length // batch) : (column + 1) * (length // batch)].tolist()
        assert segment.tokens[:, column].tolist() == part[:-1]
        assert segment.target[:, column].tolist() == part[1:]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 100])
def test_segments_hold_every_prediction_once(length: int) -> None:
    columns = Columns(text(22), 3)  # seven tokens, six predictions a column
    whole = columns.segment(0, 100)
    parts = list(columns.segments(length))
    assert [len(part.tokens) for part in parts[:-1]] == [length] * (len(parts) - 1)
    assert 1 <= len(parts[-1].tokens) <= length
    assert [part.start for part in parts] == list(range(0, 6, length))
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
    assert sum(part.target.numel() for part in parts) == columns.predicted_tokens


def test_a_group_of_columns_is_a_part_of_the_segment() -> None:
    columns = Columns(text(60), 6)
    whole = columns.segment(2, 5)
    groups = [columns.segment(2, 5, first=first, batch=2) for first in (0, 2, 4)]
    assert torch.equal(torch.cat([group.tokens for group in groups], dim=1), whole.tokens)
    assert torch.equal(torch.cat([group.target for group in groups], dim=1), whole.target)
    assert all(group.start == 2 for group in groups)


def test_the_text_is_read_not_changed_nor_shared() -> None:
    tokens = text(20)
    tokens.setflags(write=False)
    segment = Columns(tokens, 2).segment(0, 5)
    segment.tokens.fill_(-1)
    assert np.array_equal(tokens, text(20))


def test_a_batch_larger_than_the_text_is_one_clear_line() -> None:
    for length, batch in ((7, 4), (0, 1), (1, 1), (3, 100)):
        with pytest.raises(UserError) as caught:
            Columns(text(length), batch, what="train.txt")
        message = str(caught.value)
        assert message.startswith(f"train.txt: {length} tokens are too few for a batch of {batch} columns")
        assert f"at least {2 * batch}" in message
        assert message.endswith("; use a smaller batch or more text")
        assert "\n" not in message
        assert Columns(text(2 * batch), batch).length == 2
    with pytest.raises(UserError, match=r"; use a smaller train\.batch or more text$"):
        Columns(text(3), 2, setting="train.batch")


def lengths(seed: int, bptt: int, delta: int, count: int = 4000) -> NDArray[np.int64]:
    return np.array([segment_length(seed, step, bptt, delta) for step in range(count)])


def test_a_length_depends_on_the_seed_and_the_step_alone() -> None:
    first = lengths(3, 70, 40, 50)
    np.random.seed(0)
    torch.manual_seed(0)
    assert [segment_length(3, step, 70, 40) for step in reversed(range(50))] == first[::-1].tolist()
    assert (lengths(4, 70, 40, 50) != first).sum() > 30
    assert len(set(first.tolist())) > 10


def test_lengths_follow_the_paper() -> None:
    """95% around bptt and 5% around its half, with standard deviation 5. Five standard deviations of 4000 draws."""
    drawn = lengths(1, 70, 40)
    half = drawn < 52
    assert abs(half.mean() - 0.05) < 5 * (0.05 * 0.95 / 4000) ** 0.5
    for part, mean in ((drawn[~half], 70), (drawn[half], 35)):
        # whole numbers, rounded down: half below the normal draw on average
        assert abs(part.mean() - (mean - 0.5)) < 5 * 5 / len(part) ** 0.5
        assert abs(part.std() - 5) < 5 * 5 / (2 * len(part)) ** 0.5


@pytest.mark.parametrize(("bptt", "delta"), [(70, 40), (70, 20), (70, 3), (70, 0), (12, 6), (5, 0)])
def test_lengths_stay_within_their_bounds(bptt: int, delta: int) -> None:
    drawn = lengths(2, bptt, delta)
    assert drawn.min() >= 5
    assert drawn.max() <= bptt + delta
    if delta <= 6:
        assert drawn.max() == bptt + delta  # the bound is reached
    if bptt <= 12:
        assert drawn.min() == 5


def test_turned_columns_are_the_same_columns_from_another_token_on() -> None:
    columns = Columns(text(60), 4)
    plain = columns.segment(0, 100)
    whole_columns = torch.cat([plain.tokens, plain.target[-1:]]).T
    epochs = [columns.turned(3, epoch) for epoch in (1, 2)]
    for turned in epochs:
        segment = turned.segment(0, 100)
        assert torch.equal(segment.tokens[1:], segment.target[:-1])
        for column, expected in zip(torch.cat([segment.tokens, segment.target[-1:]]).T, whole_columns, strict=True):
            assert torch.equal(column, expected.roll(-int((expected == column[0]).nonzero())))
        assert torch.equal(torch.cat([part.target for part in turned.segments(4)]), segment.target)
        assert torch.equal(turned.segment(2, 5, first=1, batch=2).tokens, segment.tokens[2:7, 1:3])
    first, second = (turned.segment(0, 100).tokens for turned in epochs)
    assert not torch.equal(first, second)
    assert torch.equal(columns.turned(3, 1).segment(0, 100).tokens, first)
    assert torch.equal(columns.segment(0, 100).tokens, plain.tokens)  # the columns themselves stay as they were
