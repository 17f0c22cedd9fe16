"""Our SGD against PyTorch's; the state of every optimizer survives a checkpoint; the rate over a stage."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from highrank.errors import UserError
from highrank.runs import Config, parse_config
from highrank.train import make_optimizer
from highrank.train.schedule import rate_share


def config_of(optimizer: str, weight_decay: float = 0.01) -> Config:
    train = {"optimizer": optimizer, "weight_decay": weight_decay}
    return parse_config({"data": {"corpus": "text"}, "train": train}, source="test")


def model_of() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 4, dtype=torch.float64)


def set_gradients(model: nn.Module, step: int) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.sin(3 * parameter.detach() + step)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgd_is_that_of_pytorch(weight_decay: float) -> None:
    model, twin = model_of(), model_of()
    ours = make_optimizer(model, config_of("sgd", weight_decay))
    theirs = torch.optim.SGD(twin.parameters(), lr=1.0, weight_decay=weight_decay)
    for step, lr in enumerate((0.5, 2.0, 0.1)):
        set_gradients(model, step)
        set_gradients(twin, step)
        ours.step(lr)
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-14, atol=1e-15)


def test_sgd_leaves_a_parameter_without_a_gradient_alone() -> None:
    model = model_of()
    model.weight.grad = torch.ones_like(model.weight)
    before = weights(model)
    make_optimizer(model, config_of("sgd")).step(1.0)
    assert model.bias.equal(before[1])
    assert not model.weight.equal(before[0])


def test_rmsprop_is_adam_without_momentum() -> None:
    """w -= lr g / (sqrt(v) + epsilon), v the mean of squared gradients with a start at zero made up for."""
    model = model_of()
    expected, mean = model.weight.detach().clone(), torch.zeros(4, 5, dtype=torch.float64)
    optimizer = make_optimizer(model, config_of("rmsprop", 0.0))
    for step in range(1, 4):
        set_gradients(model, step)
        assert model.weight.grad is not None
        mean = 0.999 * mean + 0.001 * model.weight.grad**2
        expected -= 0.1 * model.weight.grad / ((mean / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step(0.1)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_the_state_goes_on_from_a_checkpoint(name: str) -> None:
    model = model_of()
    optimizer = make_optimizer(model, config_of(name))
    for step in range(3):
        set_gradients(model, step)
        optimizer.step(0.1)
    saved = {key: tensor.clone() for key, tensor in optimizer.named_tensors().items()}
    twin = copy.deepcopy(model)
    resumed = make_optimizer(twin, config_of(name))
    resumed.put(saved)
    for step in range(3, 6):
        for each in (model, twin):
            set_gradients(each, step)
        optimizer.step(0.1)
        resumed.step(0.1)
    assert all(a.equal(b) for a, b in zip(weights(model), weights(twin), strict=True))


@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_a_state_that_does_not_fit_is_refused(damage: str) -> None:
    model = model_of()
    optimizer = make_optimizer(model, config_of("adamw"))
    set_gradients(model, 0)
    optimizer.step(0.1)
    saved = optimizer.named_tensors()
    if damage == "missing":
        del saved["optimizer.exp_avg.bias"]
    else:
        saved["optimizer.exp_avg.bias"] = torch.zeros(9)
    with pytest.raises(UserError, match="state of bias is missing or does not fit"):
        make_optimizer(model, config_of("adamw")).put(saved)


def test_the_rate_over_a_stage() -> None:
    for done in (0.0, 0.3, 1.0):
        assert rate_share("constant", 0.0, done) == 1.0
    assert [rate_share("linear", 0.0, done) for done in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert [rate_share("linear", 0.2, done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [rate_share("cosine", 0.2, done) for done in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert rate_share("cosine", 0.0, 0.25) == pytest.approx(math.cos(math.pi / 8) ** 2)
