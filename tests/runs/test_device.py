"""What computes, in words."""

from collections.abc import Iterator

import pytest
import torch

from highrank.runs.device import tf32_in_lstm

cudnn = torch.backends.cudnn


@pytest.fixture(autouse=True)
def _set_back() -> Iterator[None]:
    before = cudnn.allow_tf32
    yield
    cudnn.allow_tf32 = before  # which sets the newer names too
    assert cudnn.allow_tf32 == before


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_set_by_the_older_name(allowed: bool) -> None:
    cudnn.allow_tf32 = allowed
    assert tf32_in_lstm() == allowed


def test_tf32_switched_off_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn.allow_tf32 = True
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not tf32_in_lstm()


@pytest.mark.parametrize(
    ("lstm", "convolution"), [("tf32", "ieee"), ("ieee", "tf32"), ("ieee", "ieee"), ("tf32", "tf32")]
)
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_set_by_the_newer_names(allowed: bool, lstm: str, convolution: str) -> None:
    cudnn.allow_tf32 = allowed
    cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = lstm, convolution
    assert tf32_in_lstm() == (lstm == "tf32")
