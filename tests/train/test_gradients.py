"""The sum of the gradients of several passes: exact to the last bit of float32, in memory of its own alone."""

import pytest
import torch
from torch import nn

from highrank.train.gradients import BLOCK, GradientSum, _rounded_in_place
from highrank.workers import ALONE


@pytest.mark.parametrize("count", [1, 7, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounding_in_place(count: int, dtype: torch.dtype) -> None:
    total = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    expected = total.to(dtype)
    rounded = _rounded_in_place(total, dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, expected)
    assert rounded.data_ptr() == total.data_ptr()


def test_the_sum_of_passes_again_and_again() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(300, 500), nn.Tanh(), nn.Linear(500, 2))  # a weight of more than a block
    assert max(parameter.numel() for parameter in model.parameters()) > BLOCK
    summed = GradientSum(model)
    places = set()
    for _ in range(3):
        texts, singly = [torch.randn(4, 300) for _ in range(3)], []
        for text in texts:
            singly.append(torch.autograd.grad(model(text).square().sum(), list(model.parameters())))
        model.zero_grad(set_to_none=True)
        for index, text in enumerate(texts):
            with summed.one_pass(ALONE, first=index == 0, last=index == 2):
                model(text).square().sum().backward()
        for parameter, *gradients in zip(model.parameters(), *singly, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, torch.stack(gradients).double().sum(0).float())
            places.add(parameter.grad.data_ptr())
    assert len(places) == 4, "one place for each parameter, always the same"
