"""What computes, in words."""

from collections.abc import Iterator

import pytest
import torch

from highrank.runs.device import _tf32_in_cudnn

cudnn = torch.backends.cudnn


@pytest.fixture
def _set_back() -> Iterator[None]:
    before = cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision
    yield
    cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = before


@pytest.mark.usefixtures("_set_back")
def test_tf32_is_told_however_a_program_has_set_it() -> None:
    cudnn.allow_tf32 = True
    assert _tf32_in_cudnn() == "on"
    cudnn.allow_tf32 = False
    assert _tf32_in_cudnn() == "off"
    cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = "tf32", "ieee"
    with pytest.raises(RuntimeError):
        _ = cudnn.allow_tf32
    assert _tf32_in_cudnn() == "in parts"
