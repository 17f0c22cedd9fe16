"""What the configuration says of the head reaches its loss."""

from typing import Any

import pytest
import torch

from highrank.ops import Settings
from highrank.runs import build_model, parse_config
from tests.implementations import recorded_settings

SIZES = {"embedding_features": 6, "hidden_features": 9, "last_hidden_features": 7, "num_layers": 2, "num_components": 4}
HEADS = ("softmax", "mixture-of-contexts", "mixture-of-softmaxes")
WORDS = 30


def loss_and_gradients(head: str, **train: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a model of that configuration, for the same weights and words whatever ``train`` says."""
    values = {"data": {"corpus": "none"}, "model": SIZES | {"head": head}, "train": train}
    model = build_model(parse_config(values, source="test"), WORDS)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    model.eval()  # without dropout
    tokens = torch.randint(WORDS, (12, 4), generator=generator)
    loss = model(tokens[:-1], tokens[1:], model.initial_state(4)).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("min_posterior", [0.0, 1e-4, 0.3])
def test_min_posterior_reaches_the_loss_of_every_head(
    head: str, min_posterior: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = recorded_settings(monkeypatch)
    loss_and_gradients(head, min_posterior=min_posterior)
    components = SIZES["num_components"] if head == "mixture-of-softmaxes" else 1
    rounding = torch.finfo(torch.float32).eps / (2 * components)  # which 0 stands for
    assert [settings.min_posterior for settings in seen] == [min_posterior or rounding]


def test_a_large_min_posterior_shows_in_the_gradients() -> None:
    exact_loss, exact = loss_and_gradients("mixture-of-softmaxes")
    loss, filtered = loss_and_gradients("mixture-of-softmaxes", min_posterior=0.95)  # pays even at this width
    assert loss == exact_loss
    assert filtered.keys() == exact.keys()
    for name in ("head.projection.weight", "head.bias", "backbone.embedding"):
        assert (filtered[name] - exact[name]).norm() > 0.01 * exact[name].norm(), name
    assert filtered["head.prior.weight"].equal(exact["head.prior.weight"])  # the filter leaves the prior alone


@pytest.mark.parametrize("implementation", ["auto", "chunked"])
@pytest.mark.parametrize("head", HEADS)
def test_implementation_reaches_every_head(head: str, implementation: str) -> None:
    train = {"implementation": implementation, "past_decode": 0.1}
    values = {"data": {"corpus": "none"}, "model": SIZES | {"head": head}, "train": train}
    model = build_model(parse_config(values, source="test"), WORDS)
    assert model.past_decoder is not None
    assert [each.implementation for each in (model.head, model.past_decoder)] == [implementation] * 2
