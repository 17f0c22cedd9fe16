"""Logits in half precision become probabilities a strip at a time: how many strips there are changes nothing."""

import pytest
import torch
from torch import Tensor

from highrank.functional import LossOptions, mixture_log_prob
from highrank.ops import chunked
from tests.implementations import every_reduction
from tests.parity import INPUTS, Problem, assert_same, make_problem, solve

OPTIONS = LossOptions(block_bytes=7 * 3 * 64 * 2)  # seven tokens a block, in bfloat16


def problem() -> Problem:
    return make_problem(30, components=3, features=5, classes=50, dtype=torch.bfloat16)


def strips_of(tokens: int) -> int:
    """Bytes of a strip of so many tokens."""
    return tokens * 3 * 64 * 4


def count_strips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each strip, from now on."""
    rows: list[int] = []
    whole = chunked._softmax_in_place

    def counted(logits_RU: Tensor, *others: Tensor) -> Tensor:
        rows.append(len(logits_RU))
        return whole(logits_RU, *others)

    monkeypatch.setattr(chunked, "_softmax_in_place", counted)
    return rows


@every_reduction
@pytest.mark.parametrize("tokens", [1, 2])  # of three tokens, which is the most that a strip of this block holds
def test_one_strip_or_many(tokens: int, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = solve(problem(), "chunked", reduction, options=OPTIONS)
    monkeypatch.setattr(chunked, "STRIP_BYTES", strips_of(tokens))
    rows = count_strips(monkeypatch)
    many = solve(problem(), "chunked", reduction, options=OPTIONS)
    assert max(rows) == 3 * tokens
    assert len(rows) > 30 // 7 + 1
    # The sums of the bias's gradient are added up in another order, in float32, and rounded once.
    assert_same(many, whole, rtol=0, atol=2**-7)
    for name in ("context", "prior_logits", "weight"):
        mine, theirs = many.gradients[name], whole.gradients[name]
        assert mine is not None
        assert theirs is not None
        assert mine.equal(theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_log_prob_in_strips(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem().to(dtype)
    leaves = [getattr(inputs, name).requires_grad_() for name in INPUTS]
    upstream = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))

    def solved() -> tuple[Tensor, ...]:
        log_prob = mixture_log_prob(*leaves[:3], bias=leaves[3], options=OPTIONS)
        return log_prob, *torch.autograd.grad(log_prob, leaves, upstream)

    whole = solved()
    monkeypatch.setattr(chunked, "STRIP_BYTES", strips_of(2))
    log_prob, *gradients = solved()
    assert log_prob.equal(whole[0])
    torch.testing.assert_close(gradients, list(whole[1:]))  # the bias's is summed in another order


def test_float32_needs_no_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "STRIP_BYTES", 1)
    rows = count_strips(monkeypatch)
    solve(problem().to(torch.float32), "chunked", "sum", options=LossOptions(block_bytes=7 * 3 * 56 * 4))
    assert rows == [21, 21, 21, 21, 6]
