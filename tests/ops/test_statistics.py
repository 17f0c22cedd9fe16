"""What the loss's pass knows of the components."""

import pytest
import torch
from torch import nn

from highrank.functional import mixture_statistics
from tests.implementations import every_implementation, every_reduction
from tests.parity import make_problem


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@every_reduction
def test_statistics_are_those_of_the_definition(implementation: str, reduction: str) -> None:
    problem = make_problem(3, 4)
    problem.context.requires_grad_()
    found = mixture_statistics(
        problem.context,
        problem.prior_logits,
        problem.weight,
        problem.target,
        bias=problem.bias,
        reduction=reduction,
        implementation=implementation,
    )
    prior = problem.prior_logits.softmax(-1)
    logits = nn.functional.linear(problem.context, problem.weight, problem.bias).detach()
    target = problem.target[..., None, None].expand(3, 4, 3, 1)
    likelihood = logits.softmax(-1).gather(-1, target).squeeze(-1)
    joint = prior * likelihood
    posterior = joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(found.prior, prior)
    torch.testing.assert_close(found.posterior, posterior)
    torch.testing.assert_close(found.component_log_prob, likelihood.log())
    torch.testing.assert_close(found.prior_entropy, -(prior * prior.log()).sum(-1))
    torch.testing.assert_close(found.posterior_entropy, -(posterior * posterior.log()).sum(-1))
    assert [x.requires_grad for x in found] == [True, False, False, False, False, False]
    torch.testing.assert_close(found.loss, problem.loss(reduction=reduction, implementation="reference"))
    (ours,) = torch.autograd.grad(found.loss.sum(), problem.context)
    (expected,) = torch.autograd.grad(
        problem.loss(reduction=reduction, implementation="reference").sum(), problem.context
    )
    torch.testing.assert_close(ours, expected)


@every_implementation
def test_what_a_component_without_weight_would_have_said(implementation: str) -> None:
    problem = make_problem(6, dtype=torch.float32)
    problem.prior_logits[:, 1] = torch.tensor([-torch.inf, -1e4, -1e8, 0, -3, 2])
    found, likely = (
        mixture_statistics(
            problem.context,
            prior_logits,
            problem.weight,
            problem.target,
            bias=problem.bias,
            implementation=implementation,
        )
        for prior_logits in (problem.prior_logits, torch.zeros_like(problem.prior_logits))
    )
    torch.testing.assert_close(found.component_log_prob, likely.component_log_prob)
    assert found.posterior[:3, 1].eq(0).all()
