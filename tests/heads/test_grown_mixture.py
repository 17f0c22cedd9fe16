"""A mixture that begins as a trained softmax: nothing is lost at the start, and its components part in training."""

import pytest
import torch
from torch import Tensor, nn

from highrank.heads import GrownMixture, Softmax
from tests.parity import default_dtype


@pytest.fixture
def linear() -> nn.Linear:
    """Float64, trained or as good as that."""
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        return nn.Linear(6, 9)


def gradients(head: nn.Module, hidden: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of hidden states, weight and bias."""
    head.zero_grad()
    hidden = hidden.clone().requires_grad_()
    head(hidden, target).backward()
    weights = dict(head.named_parameters())
    return {"hidden": hidden.grad} | {name: weights[name].grad.clone() for name in ("weight", "bias")}


def test_it_begins_as_the_softmax(linear: nn.Linear) -> None:
    softmax = Softmax(6, 9, dtype=torch.float64)
    softmax.load_state_dict(linear.state_dict())
    hidden, target = torch.randn(20, 6, dtype=torch.float64), torch.randint(9, (20,))
    grown = GrownMixture(linear, num_components=4)
    torch.testing.assert_close(grown.log_prob(hidden), linear(hidden).log_softmax(-1), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradients(grown, hidden, target), gradients(softmax, hidden, target), rtol=0, atol=1e-14)


def test_its_components_part_in_training(linear: nn.Linear) -> None:
    """And reach a loss that the softmax alone does not."""
    torch.manual_seed(1)
    hidden, target = torch.randn(60, 6, dtype=torch.float64), torch.randint(9, (60,))

    def trained(head: nn.Module) -> float:
        optimizer = torch.optim.AdamW(head.parameters(), lr=3e-2)
        for _ in range(100):
            loss = head(hidden, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    softmax = Softmax(6, 9, dtype=torch.float64)
    softmax.load_state_dict(linear.state_dict())
    grown = GrownMixture(linear, num_components=4)
    assert trained(grown) < trained(softmax) - 0.1
    contexts = grown.components(hidden).context
    assert (contexts - contexts[:, :1]).abs().amax(dim=(0, 2))[1:].min() > 0.1


def test_the_trained_layer_stays_what_it_is_and_tied(linear: nn.Linear) -> None:
    embedding = nn.Embedding(9, 6, dtype=torch.float64)
    linear.weight = embedding.weight
    grown = GrownMixture(linear, num_components=2)
    assert grown.weight is embedding.weight
    assert grown.bias is linear.bias
    saved = {name: torch.randn_like(value) for name, value in grown.state_dict().items()}
    grown.load_state_dict(saved)
    assert embedding.weight.equal(saved["weight"])
    assert linear.bias.equal(saved["bias"])
    assert GrownMixture(nn.Linear(6, 9, bias=False), num_components=2).bias is None


def test_a_reset_of_each_layer_shifts_nothing(linear: nn.Linear) -> None:
    """What a framework does that makes a model without memory, and then fills in what a checkpoint lacks."""
    grown = GrownMixture(linear, num_components=2)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.fill_(torch.nan)
    for module in grown.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    hidden = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(grown.log_prob(hidden), linear(hidden).log_softmax(-1), rtol=0, atol=1e-14)
