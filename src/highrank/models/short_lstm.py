"""An LSTM layer for a handful of tokens on a CPU, as in dynamic evaluation (segments of 5, batch 1).

PyTorch's own packs the weights anew at every call and unpacks their gradients: for a few tokens and wide layers that is
most of its time. Measured (``benchmarks/bench_short_lstm.py``, through autograd) this one is faster at the paper's
width, at widths of some hundreds as fast or a fifth slower, and slower for longer segments.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from highrank.ops.autocast import without_autocast

__all__ = ["ShortLSTM", "is_short", "short_lstm"]

SHORT_TOKENS = 8


def is_short(sequence: Tensor) -> bool:
    """Is (T, B, *) so short that ``short_lstm`` may be the faster one?"""
    return sequence.device.type == "cpu" and sequence.shape[0] * sequence.shape[1] <= SHORT_TOKENS


def short_lstm(
    sequence: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, one direction, as ``torch.lstm``.

    Shape: sequence (T, B, I); state two of (1, B, H); weight_ih (4H, I), weight_hh (4H, H) and biases (4H) with the
    gates in PyTorch's order: input, forget, cell, output. Returns the outputs (T, B, H) and the state after them.
    """
    outputs, hidden, cell = _Function.apply(  # type: ignore[no-untyped-call]
        sequence, *state, weight_ih, weight_hh, bias_ih, bias_hh
    )
    return outputs, hidden, cell


class _Step(NamedTuple):
    """What one step reads and writes: (B, H), of gates (B, 4H)."""

    inner: Tensor  # the gates before their sigmoid or tanh
    inner_new: Tensor
    gates: Tensor
    input: Tensor
    forget: Tensor
    new: Tensor
    output: Tensor
    hidden: Tensor  # before the step
    cell: Tensor
    next_hidden: Tensor
    next_cell: Tensor
    tanh_cell: Tensor
    of_cell: Tensor  # (B, 3, H): what the cell's gradient is multiplied with for those of input, forget and new
    cell_of_output: Tensor
    gate_of_output: Tensor
    grad_gates: Tensor
    grad_of_cell: Tensor
    grad_of_output: Tensor


class ShortLSTM:
    """A layer's forward and backward pass over (T, B), again and again, in the same memory.

    On so few numbers a call costs as much as its arithmetic: the views of every step are made once.
    """

    def __init__(self, steps: int, batch: int, width: int, like: Tensor) -> None:
        def room(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=like.dtype, device=like.device)

        self._inner_NG = room(steps * batch, 4 * width)  # N = T * B, G = 4H
        gates_TB4H, self._grad_gates_TB4H = (room(steps, batch, 4, width) for _ in range(2))
        self._gates = gates_TB4H.unbind(2)
        self._hidden_SBH, self._cell_SBH = (room(steps + 1, batch, width) for _ in range(2))  # S = T + 1
        self._tanh_cell_TBH, self._cell_of_output_TBH, self._gate_of_output_TBH = (
            room(steps, batch, width) for _ in range(3)
        )
        of_cell_TB3H = room(steps, batch, 3, width)
        self._of_cell = of_cell_TB3H.unbind(2)
        inner_TB4H = self._inner_NG.view(steps, batch, 4, width)
        of_each_step = (
            inner_TB4H.flatten(2),
            inner_TB4H[:, :, 2],
            gates_TB4H.flatten(2),
            *self._gates,
            self._hidden_SBH[:-1],
            self._cell_SBH[:-1],
            self._hidden_SBH[1:],
            self._cell_SBH[1:],
            self._tanh_cell_TBH,
            of_cell_TB3H,
            self._cell_of_output_TBH,
            self._gate_of_output_TBH,
            self._grad_gates_TB4H.flatten(2),
            self._grad_gates_TB4H[:, :, :3],
            self._grad_gates_TB4H[:, :, 3],
        )
        self._steps = [_Step(*views) for views in zip(*(tensor.unbind() for tensor in of_each_step), strict=True)]
        self.outputs = self._hidden_SBH[1:]  # (T, B, H)
        self.hidden_before = self._hidden_SBH[:-1].view(steps * batch, width)  # each step, (N, H)

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """Hidden and cell after the last step, (1, B, H) each, to be kept."""
        return self._hidden_SBH[-1:].clone(), self._cell_SBH[-1:].clone()

    @torch.no_grad()
    def forward(
        self,
        sequence_NI: Tensor,
        state: tuple[Tensor, Tensor],
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
    ) -> None:
        """Fills ``outputs`` and ``state``."""
        torch.addmm(bias_ih + bias_hh, sequence_NI, weight_ih.t(), out=self._inner_NG)
        self._hidden_SBH[:1], self._cell_SBH[:1] = state
        weight_hh_HG = weight_hh.t()
        for step in self._steps:
            step.inner.addmm_(step.hidden, weight_hh_HG)
            torch.sigmoid(step.inner, out=step.gates)
            torch.tanh(step.inner_new, out=step.new)
            torch.mul(step.forget, step.cell, out=step.next_cell).addcmul_(step.input, step.new)
            torch.tanh(step.next_cell, out=step.tanh_cell)
            torch.mul(step.output, step.tanh_cell, out=step.next_hidden)

    @torch.no_grad()
    def backward(
        self, weight_hh: Tensor, grad_outputs: Tensor, grad_cell: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the gates before sigmoid and tanh (N, 4H), and of the cell before the first step (B, H).

        ``grad_outputs`` (T, B, H), ``grad_cell`` (1, B, H): of the outputs and of the last cell. All other gradients
        are products of those of the gates: with ``weight_ih`` that of the sequence, with the sequence that of
        ``weight_ih``, with ``hidden_before`` that of ``weight_hh``; their sum is that of either bias.
        """
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        input_TBH, forget_TBH, new_TBH, output_TBH = self._gates
        sigmoid_backward(new_TBH, input_TBH, grad_input=self._of_cell[0])
        sigmoid_backward(self._cell_SBH[:-1], forget_TBH, grad_input=self._of_cell[1])
        tanh_backward(input_TBH, new_TBH, grad_input=self._of_cell[2])
        tanh_backward(output_TBH, self._tanh_cell_TBH, grad_input=self._cell_of_output_TBH)
        sigmoid_backward(self._tanh_cell_TBH, output_TBH, grad_input=self._gate_of_output_TBH)
        *earlier, grad_hidden_BH = grad_outputs.unbind()
        grad_cell_BH = torch.zeros_like(grad_hidden_BH) if grad_cell is None else grad_cell[0].clone()
        grad_cell_B1H = grad_cell_BH.unsqueeze(1)
        for step in reversed(self._steps):
            grad_cell_BH.addcmul_(grad_hidden_BH, step.cell_of_output)
            torch.mul(step.of_cell, grad_cell_B1H, out=step.grad_of_cell)
            torch.mul(step.gate_of_output, grad_hidden_BH, out=step.grad_of_output)
            grad_cell_BH.mul_(step.forget)
            if earlier:
                grad_hidden_BH = torch.addmm(earlier.pop(), step.grad_gates, weight_hh)
        return self._grad_gates_TB4H.view(self._inner_NG.shape), grad_cell_BH


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sequence: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        steps, batch, _ = sequence.shape
        ctx.layer = ShortLSTM(steps, batch, hidden.shape[-1], sequence)
        ctx.layer.forward(sequence.flatten(0, 1), (hidden, cell), *weights)
        ctx.save_for_backward(sequence, *weights[:2])
        return ctx.layer.outputs.clone(), *ctx.layer.state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, grad_hidden: Tensor, grad_cell: Tensor) -> tuple[Tensor, ...]:
        sequence, weight_ih, weight_hh = ctx.saved_tensors
        with without_autocast(sequence.device.type):  # it may be called where autocast is on
            grad_outputs = torch.cat([grad_outputs[:-1], grad_outputs[-1:] + grad_hidden])
            gates_NG, grad_cell_BH = ctx.layer.backward(weight_hh, grad_outputs, grad_cell)
            grad_bias_G = gates_NG.sum(0)
            return (
                torch.mm(gates_NG, weight_ih).view_as(sequence),
                torch.mm(gates_NG[: len(grad_cell_BH)], weight_hh).unsqueeze(0),
                grad_cell_BH.unsqueeze(0),
                torch.mm(gates_NG.t(), sequence.flatten(0, 1)),
                torch.mm(gates_NG.t(), ctx.layer.hidden_before),
                grad_bias_G,
                grad_bias_G,
            )
