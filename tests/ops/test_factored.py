"""The loss of a few tokens, the gradient of its weight in two factors, against the definition."""

import pytest
import torch

from highrank.functional import LossOptions, mixture_cross_entropy
from highrank.ops import factored_loss


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "components", "classes"), [(1, 1, 2), (5, 3, 19), (8, 4, 33)])
def test_loss_and_every_gradient_are_those_of_the_reference(
    tokens: int, components: int, classes: int, bias: bool
) -> None:
    torch.manual_seed(tokens)
    sizes = [(tokens, components, 6), (tokens, components), (classes, 6), (classes,)]
    context, prior_logits, weight, offset = (torch.randn(size, dtype=torch.float64) * 2 for size in sizes)
    target = torch.randint(classes, (tokens,))
    inputs = [tensor.requires_grad_() for tensor in (context, prior_logits, weight, offset)[: 3 + bias]]
    expected = mixture_cross_entropy(
        context, prior_logits, weight, target, bias=offset if bias else None, implementation="reference"
    )
    gradients = torch.autograd.grad(expected, inputs, allow_unused=components == 1)
    found = factored_loss(
        context, prior_logits, weight, offset if bias else None, target, LossOptions().settings(context, weight)
    )
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-12, atol=1e-13)
    of_context = ((found.rows @ weight) * found.scale).view_as(context)
    ours = [of_context, found.prior_logits, found.rows.T @ found.inputs, *([found.bias] if bias else [])]
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert (found.bias is None) == (not bias)
