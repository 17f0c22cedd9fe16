"""The Python that the documentation shows runs as it stands."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_head_of_the_readme() -> None:
    (code,) = blocks("README.md")
    names: dict[str, object] = {}
    exec(code, names)
    log_prob, loss = names["log_prob"], names["loss"]
    assert isinstance(log_prob, Tensor)
    assert isinstance(loss, Tensor)
    assert loss.item() > 0
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(8), rtol=1e-4, atol=0)


def test_the_model_and_the_loss_of_the_loss_page() -> None:
    model_code, loss_code = blocks("docs/loss.md")
    names: dict[str, object] = {}
    exec(model_code, names)
    model = names["Model"](nn.Embedding(11, 6), hidden=6, vocabulary=11)  # type: ignore[operator]
    model(torch.arange(10), torch.arange(10)).backward()
    assert all(p.grad is not None for p in model.parameters())

    names |= {
        "context": torch.randn(5, 3, 4, requires_grad=True),
        "prior_logits": torch.randn(5, 3),
        "weight": torch.randn(11, 4),
        "bias": torch.zeros(11),
        "target": torch.arange(5),
    }
    exec(loss_code, names)
    loss = names["loss"]
    assert isinstance(loss, Tensor)
    loss.backward()
