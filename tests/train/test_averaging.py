"""The average of the weights against PyTorch's averaged SGD, and against its formula."""

import pytest
import torch
from torch import Tensor, nn

from highrank.errors import UserError
from highrank.train import WeightAverage, averaged_weights


def walk(power: float, updates: int) -> tuple[list[Tensor], WeightAverage]:
    """The weights that a model went through, and their average."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    average, seen = WeightAverage(model, power), []
    for count in range(1, updates + 1):
        with torch.no_grad():
            model.weight.normal_()
        average.add(count)
        seen.append(model.weight.detach().clone())
    return seen, average


def test_power_0_is_the_mean_of_all_but_the_first_weights() -> None:
    seen, average = walk(0.0, 9)
    torch.testing.assert_close(average.tensors["weight"], torch.stack(seen[1:]).mean(dim=0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("power", [1.0, 3.0, 15.0])
def test_weights_count_by_a_polynomial_of_their_number(power: float) -> None:
    """Unrolled, the k-th of n weights has the share prod (1 - m_j) m_k with m_k = (power + 1) / (power + k), which is
    (power + 1) k (k + 1) ... (k + power - 1) / (n (n + 1) ... (n + power)): a polynomial of degree ``power`` in k."""
    seen, average = walk(power, 12)
    last = len(seen) - 1  # the first weights are left out
    shares = []
    for place in range(1, last + 1):
        rising = torch.arange(place, place + power, dtype=torch.float64).prod()
        shares.append((power + 1) * rising / torch.arange(last, last + power + 1, dtype=torch.float64).prod())
    assert sum(shares) == pytest.approx(1.0, rel=1e-13)
    expected = torch.stack([share * weight for share, weight in zip(shares, seen[1:], strict=True)]).sum(dim=0)
    torch.testing.assert_close(average.tensors["weight"], expected, rtol=1e-12, atol=1e-14)


def test_the_model_has_the_average_for_a_while() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with averaged_weights(None, model):
        pass
    average = WeightAverage(model, 0.0)
    average.tensors["weight"].fill_(2.0)
    before, place = model.weight.detach().clone(), model.weight.data_ptr()
    with averaged_weights(average, model):
        assert model.weight.eq(2.0).all()
        assert average.tensors["weight"].data_ptr() == place, "nothing is copied"
    assert model.weight.equal(before)
    with pytest.raises(KeyError), averaged_weights(average, model):
        raise KeyError
    assert model.weight.equal(before)
    assert model.weight.data_ptr() == place
    assert average.tensors["weight"].eq(2.0).all()
    with torch.no_grad():
        model.weight.fill_(4.0)
    average.add(3)  # of the weights where they are now
    assert average.tensors["weight"].eq(3.0).all()


@pytest.mark.parametrize("damage", ["missing", "another shape", "another type"])
def test_a_checkpoint_without_the_average_is_refused(damage: str) -> None:
    average = WeightAverage(nn.Linear(3, 2), 0.0)
    saved = {name: tensor.clone() for name, tensor in average.named_tensors().items()}
    average.put(saved)
    if damage == "missing":
        del saved["average.bias"]
    else:
        saved["average.bias"] = torch.zeros(3) if damage == "another shape" else torch.zeros(2, dtype=torch.float64)
    with pytest.raises(UserError, match="the average of bias is missing or does not fit"):
        average.put(saved)
