"""The persistent recurrence on a CUDA device: no worse than cuDNN, and a thousand times the same bits."""

import pytest
import torch

from highrank.models import persistent_lstm
from tests.gpu.marks import compiled, on_a_gpu
from tests.models.test_persistent_lstm import errors, inputs_of, ours, torchs
from tests.models.test_persistent_lstm import solve as solve_layer

pytestmark = on_a_gpu


@compiled
@pytest.mark.usefixtures("programs_meet")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "size", [(70, 12, 280, 960), (70, 12, 960, 620), (33, 5, 300, 1150), (1, 1, 3, 5), (17, 17, 40, 321)], ids=str
)
def test_a_persistent_layer_is_no_worse_than_cudnn(size: tuple[int, ...], dtype: torch.dtype) -> None:
    if (reason := persistent_lstm.cannot_run(torch.device("cuda"), dtype, size[1], size[3])) is not None:
        pytest.skip(reason)
    inputs = [x.cuda() for x in inputs_of(*size)]
    truth = solve_layer(torchs, inputs, torch.float64)
    naive = errors(solve_layer(torchs, inputs, dtype), truth)
    found = errors(solve_layer(ours, inputs, dtype, long_cell=True), truth)
    for error, naive_error in zip(found, naive, strict=True):
        assert error < 1.5 * naive_error + torch.finfo(dtype).eps / 2  # of few numbers the errors are chance


@compiled
@pytest.mark.usefixtures("programs_meet")
def test_a_thousand_persistent_layers_have_the_same_bits() -> None:
    """A program that read before the others had written would differ, now and then: two problems take turns, so that
    what is left in the memory from the last call is wrong."""
    problems = []
    for scale in (1.0, -0.5):
        leaves = [x.cuda().to(torch.bfloat16).mul(scale) for x in inputs_of(70, 12, 280, 960)]
        leaves[2] = leaves[2].float()
        problems.append([x.requires_grad_() for x in leaves])
    upstream = torch.randn(70, 12, 960, device="cuda", dtype=torch.bfloat16)

    def solved(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs, *_ = ours(*leaves)
        return [outputs, *torch.autograd.grad(outputs, leaves, upstream)]

    first = [solved(leaves) for leaves in problems]
    for _ in range(500):
        for leaves, expected in zip(problems, first, strict=True):
            assert all(one.equal(other) for one, other in zip(solved(leaves), expected, strict=True))
