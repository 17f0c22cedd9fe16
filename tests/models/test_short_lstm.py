"""The LSTM layer for a few tokens against PyTorch's."""

import pytest
import torch
from torch import Tensor

from highrank.models.short_lstm import SHORT_TOKENS, is_short, short_lstm


def arguments(steps: int, batch: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(steps)
    sizes = [(steps, batch, 3), (1, batch, 5), (1, batch, 5), (20, 3), (20, 5), (20,), (20,)]
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def ours(sequence: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return short_lstm(sequence, (hidden, cell), *weights)


def torchs(sequence: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.lstm(sequence, (hidden, cell), list(weights), True, 1, 0.0, True, False, False))


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (5, 1), (1, 4), (4, 3)])
def test_outputs_and_every_gradient_are_those_of_pytorch(steps: int, batch: int) -> None:
    inputs = arguments(steps, batch)
    outputs, expected = ours(*inputs), torchs(*inputs)
    upstream = [torch.randn_like(output) for output in expected]
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(outputs, inputs, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, upstream), rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(ours, arguments(3, 2))


def test_a_state_of_no_further_use_may_be_left_out() -> None:
    inputs = arguments(5, 1)
    of_outputs = torch.autograd.grad(ours(*inputs)[0].sum(), inputs)
    torch.testing.assert_close(of_outputs, torch.autograd.grad(torchs(*inputs)[0].sum(), inputs))


def test_what_is_short() -> None:
    assert is_short(torch.zeros(SHORT_TOKENS, 1, 3))
    assert not is_short(torch.zeros(SHORT_TOKENS, 2, 3))
    assert not is_short(torch.zeros(5, 1, 3, device="meta"))


def test_backward_where_autocast_is_on_computes_what_it_does_elsewhere() -> None:
    inputs = arguments(5, 1, torch.float32)
    outputs = ours(*inputs)[0]
    expected = torch.autograd.grad(outputs.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
