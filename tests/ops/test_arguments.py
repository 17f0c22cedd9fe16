"""A wrong argument or option is named, with what was expected and what came."""

import math
from typing import Any

import pytest
import torch

from highrank.functional import LossOptions, mixture_log_prob
from tests.implementations import every_implementation
from tests.parity import make_problem


@every_implementation
@pytest.mark.parametrize("wrong", [7, -1, -100, 10**12])
def test_a_target_out_of_range_raises(implementation: str, wrong: int) -> None:
    problem = make_problem(2, 3)
    problem.ignore_index = -7
    problem.target[1, 0] = wrong
    with pytest.raises(
        ValueError,
        match=rf"target: expected values from 0 to 6 .*-7.* got {wrong} at position 3 of the flattened target$",
    ):
        problem.loss(implementation=implementation)


BAD_ARGUMENTS = {
    "context without components": (
        {"context": (5,)},
        r"context: expected shape \(\*, components, features\), got \(5,\)",
    ),
    "prior of other components": ({"prior_logits": (4, 2)}, r"prior_logits: expected shape \(4, 3\) .* got \(4, 2\)"),
    "prior of other tokens": ({"prior_logits": (3, 3)}, r"prior_logits: expected shape \(4, 3\) .* got \(3, 3\)"),
    "weight of other features": ({"weight": (7, 6)}, r"weight: expected shape \(classes, 5\) .* got \(7, 6\)"),
    "weight transposed": ({"weight": (5, 7)}, r"weight: expected shape \(classes, 5\) .* got \(5, 7\)"),
    "weight of one dimension": ({"weight": (5,)}, r"weight: expected shape \(classes, 5\) .* got \(5,\)"),
    "bias of other classes": ({"bias": (6,)}, r"bias: expected shape \(7,\) for weight \(7, 5\), got \(6,\)"),
    "bias that would broadcast": ({"bias": (1,)}, r"bias: expected shape \(7,\) for weight \(7, 5\), got \(1,\)"),
    "no class": ({"weight": (0, 5), "bias": (0,)}, r"at least one class, .* weight \(0, 5\)"),
    "no component": ({"context": (4, 0, 5), "prior_logits": (4, 0)}, r"one component .* context \(4, 0, 5\)"),
    "no feature": ({"context": (4, 3, 0), "weight": (7, 0)}, r"one feature, got weight \(7, 0\)"),
}


@every_implementation
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_wrong_shape_is_named(implementation: str, case: str) -> None:
    shapes, message = BAD_ARGUMENTS[case]
    problem = make_problem(4)
    for name, shape in shapes.items():
        setattr(problem, name, torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        problem.loss(implementation=implementation)
    with pytest.raises(ValueError, match=message):
        mixture_log_prob(problem.context, problem.prior_logits, problem.weight, bias=problem.bias)


@every_implementation
def test_a_wrong_target_is_named(implementation: str) -> None:
    problem = make_problem(4)
    for shape in ((3,), (4, 1), ()):
        problem.target = torch.zeros(shape, dtype=torch.int64)
        got = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"target: expected shape \(4,\) .* got {got}"):
            problem.loss(implementation=implementation)
    for dtype in (torch.int32, torch.float64):
        problem.target = torch.zeros(4, dtype=dtype)
        with pytest.raises(ValueError, match=rf"target: expected int64, got {dtype}"):
            problem.loss(implementation=implementation)


@every_implementation
@pytest.mark.parametrize("name", ["prior_logits", "weight", "bias"])
def test_a_wrong_dtype_is_named(implementation: str, name: str) -> None:
    problem = make_problem(4)
    setattr(problem, name, getattr(problem, name).float())
    with pytest.raises(ValueError, match=f"{name}: expected torch.float64 .* got torch.float32"):
        problem.loss(implementation=implementation)


@every_implementation
@pytest.mark.parametrize("name", ["prior_logits", "weight", "bias", "target"])
def test_a_wrong_device_is_named(implementation: str, name: str) -> None:
    problem = make_problem(4)
    setattr(problem, name, getattr(problem, name).to("meta"))
    with pytest.raises(ValueError, match=rf"{name}: expected .*cpu like context, got .*meta"):
        problem.loss(implementation=implementation)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused(implementation: str, dtype: torch.dtype) -> None:
    problem = make_problem(4).to(dtype)
    with pytest.raises(ValueError, match=rf"context: expected float32, .* or float16, got {dtype}"):
        problem.loss(implementation=implementation)


def test_a_wrong_choice_is_named() -> None:
    problem = make_problem(4)
    with pytest.raises(ValueError, match="reduction: expected none, mean or sum, got 'average'"):
        problem.loss(reduction="average")
    with pytest.raises(ValueError, match=r"implementation: expected auto, .*, got 'cuda'"):
        problem.loss(implementation="cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_bytes": 0}, "block_bytes: expected a positive number of bytes, got 0"),
        ({"block_bytes": 1e6}, r"block_bytes: expected a positive number of bytes, got 1000000\.0"),
        (
            {"accumulation_dtype": torch.bfloat16},
            "accumulation_dtype: expected torch.float32 or torch.float64, got torch.bfloat16",
        ),
        ({"min_posterior": -0.1}, r"min_posterior: expected a number from 0 to below 1, got -0\.1"),
        ({"min_posterior": 1.0}, r"min_posterior: expected a number from 0 to below 1, got 1\.0"),
        ({"min_posterior": math.nan}, "min_posterior: expected a number from 0 to below 1, got nan"),
    ],
)
def test_a_wrong_option_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossOptions(**arguments)


def test_sums_shorter_than_the_inputs_are_refused() -> None:
    problem = make_problem(3)
    with pytest.raises(ValueError, match=r"accumulation_dtype: expected at least torch\.float64 .* got torch\.float32"):
        problem.loss(options=LossOptions(accumulation_dtype=torch.float32))
