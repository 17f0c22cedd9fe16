"""A model that learns from what it is scored on: whatever the segment's way, and the trained weights come back."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from highrank.evaluate import Adaptation, DynamicSettings, GradientStatistics, moves
from highrank.evaluate import adaptation as adaptation_module
from highrank.heads import Head, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from highrank.models import AWDLSTM, LanguageModel
from tests.parity import default_dtype

VOCAB = 23

HEADS: dict[str, Callable[[], Head]] = {
    "softmax": lambda: Softmax(7, VOCAB, context_features=6),
    "softmax without a projection": lambda: Softmax(6, VOCAB, bias=False),
    "contexts": lambda: MixtureOfContexts(7, VOCAB, num_components=3, context_features=6),
    "softmaxes": lambda: MixtureOfSoftmaxes(7, VOCAB, num_components=3, context_features=6),
}


def model_with(head: str, tied: bool) -> LanguageModel:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        made = HEADS[head]()
        width = 6 if head == "softmax without a projection" else 7
        backbone = AWDLSTM(VOCAB, embedding_features=6, hidden_features=9, out_features=width, num_layers=2)
        return LanguageModel(backbone, made, tied=tied)


def adapted(model: LanguageModel, segments: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor], Adaptation]:
    """The losses of the segments (T + 1), and the weights that were learnt."""
    generator = torch.Generator().manual_seed(1)
    squares = {
        name: torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
        for name, parameter in model.named_parameters()
    }
    settings = DynamicSettings(lamb=0.5, lr=0.3)
    with Adaptation(model, GradientStatistics(squares, 1), settings) as adaptation:
        losses = [adaptation.step(part[:-1, None], part[1:, None]) for part in segments]
        learnt = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return losses, learnt, adaptation


def text() -> list[Tensor]:
    """Segments of five and a shorter one; words come back within a segment."""
    words = torch.from_numpy(np.random.default_rng(2).integers(VOCAB // 3, size=24))
    return [words[start : start + 6] for start in range(0, 23, 5)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_short_segments_learn_what_autograd_does(head: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "PIECE", 30)  # several pieces a matrix, the last one smaller
    losses, learnt, _ = adapted(model_with(head, tied), text())
    model = model_with(head, tied)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    monkeypatch.setattr(adaptation_module, "is_short", lambda _: False)
    expected, weights, _ = adapted(model, text())
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-12)
    for name, weight in weights.items():
        torch.testing.assert_close(learnt[name], weight, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(weight, before[name])


def test_the_trained_weights_are_the_same_tensors_again_after_an_error() -> None:
    model = model_with("softmaxes", tied=True)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    squares = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    with Adaptation(model, GradientStatistics(squares, 1), DynamicSettings()) as adaptation:
        adaptation.step(torch.tensor([[1]]), torch.tensor([[2]]))
        assert not torch.equal(model.head.weight, before["backbone.embedding"][1])
        with pytest.raises(IndexError):
            adaptation.step(torch.tensor([[VOCAB]]), torch.tensor([[2]]))
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_a_state_that_was_kept_does_not_change() -> None:
    """``explore`` and the report predict with the state before a step."""
    model = model_with("softmaxes", tied=True)
    squares = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    first, second = text()[:2]
    with Adaptation(model, GradientStatistics(squares, 1), DynamicSettings()) as adaptation:
        adaptation.step(first[:-1, None], first[1:, None])
        kept = adaptation.state
        copies = [(hidden.clone(), cell.clone()) for hidden, cell in kept]
        adaptation.step(second[:-1, None], second[1:, None])
        assert all(
            torch.equal(a, b) for pair, copy in zip(kept, copies, strict=True) for a, b in zip(pair, copy, strict=True)
        )
        assert not torch.equal(adaptation.state[0][0], kept[0][0])
