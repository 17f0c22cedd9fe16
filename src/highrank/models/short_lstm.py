"""An LSTM layer for a handful of tokens on a CPU, as in dynamic evaluation (segments of 5, batch 1).

PyTorch's own packs the weights anew at every call and unpacks their gradients: for a few tokens that is most of its
time. Measured (``benchmarks/bench_short_lstm.py``) this one is as fast or faster there, and slower for longer segments.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["is_short", "short_lstm"]

SHORT_TOKENS = 8


def is_short(sequence: Tensor) -> bool:
    """Is (T, B, features) so short that ``short_lstm`` is the faster one?"""
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
    outputs, hidden, cell = _ShortLSTM.apply(  # type: ignore[no-untyped-call]
        sequence, *state, weight_ih, weight_hh, bias_ih, bias_hh
    )
    return outputs, hidden, cell


class _ShortLSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sequence: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, _ = sequence.shape
        width = weight_hh.shape[1]
        gates_NG = torch.addmm(bias_ih + bias_hh, sequence.flatten(0, 1), weight_ih.t())  # N = T * B, G = 4H
        gates_TBG = gates_NG.view(steps, batch, 4 * width)
        # Before the first step and after each.
        hidden_SBH, cell_SBH = (sequence.new_empty(steps + 1, batch, width) for _ in range(2))
        tanh_cell_TBH = torch.empty_like(hidden_SBH[1:])
        hidden_SBH[:1], cell_SBH[:1] = hidden, cell
        for step, gates_BG in enumerate(gates_TBG):
            gates_BG.addmm_(hidden_SBH[step], weight_hh.t())
            gates_BG[:, : 2 * width].sigmoid_()
            gates_BG[:, 2 * width : 3 * width].tanh_()
            gates_BG[:, 3 * width :].sigmoid_()
            input_BH, forget_BH, new_BH, output_BH = gates_BG.split(width, dim=1)
            torch.mul(forget_BH, cell_SBH[step], out=cell_SBH[step + 1]).addcmul_(input_BH, new_BH)
            torch.tanh(cell_SBH[step + 1], out=tanh_cell_TBH[step])
            torch.mul(output_BH, tanh_cell_TBH[step], out=hidden_SBH[step + 1])
        ctx.save_for_backward(sequence, weight_ih, weight_hh, gates_TBG, hidden_SBH, cell_SBH, tanh_cell_TBH)
        return hidden_SBH[1:], hidden_SBH[-1:].clone(), cell_SBH[-1:].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, grad_hidden: Tensor, grad_cell: Tensor) -> tuple[Tensor, ...]:
        sequence, weight_ih, weight_hh, gates_TBG, hidden_SBH, cell_SBH, tanh_cell_TBH = ctx.saved_tensors
        steps, batch, width = tanh_cell_TBH.shape
        input_TBH, forget_TBH, new_TBH, output_TBH = gates_TBG.split(width, dim=2)
        # What the gradient of a step's cell, or of its output, is multiplied with: of all steps at once.
        of_cell_TB3H = torch.stack(
            [
                new_TBH * input_TBH * (1 - input_TBH),
                cell_SBH[:-1] * forget_TBH * (1 - forget_TBH),
                input_TBH * (1 - new_TBH * new_TBH),
            ],
            dim=2,
        )
        cell_of_output_TBH = output_TBH * (1 - tanh_cell_TBH * tanh_cell_TBH)
        gate_of_output_TBH = tanh_cell_TBH * output_TBH * (1 - output_TBH)
        grad_gates_TB4H = gates_TBG.new_empty(steps, batch, 4, width)
        grad_hidden_BH, grad_cell_BH = grad_hidden[0].clone(), grad_cell[0].clone()
        for step in reversed(range(steps)):
            grad_hidden_BH += grad_outputs[step]
            grad_cell_BH.addcmul_(grad_hidden_BH, cell_of_output_TBH[step])
            grad_gates_B4H = grad_gates_TB4H[step]
            torch.mul(of_cell_TB3H[step], grad_cell_BH.unsqueeze(1), out=grad_gates_B4H[:, :3])
            torch.mul(gate_of_output_TBH[step], grad_hidden_BH, out=grad_gates_B4H[:, 3])
            grad_cell_BH *= forget_TBH[step]
            torch.mm(grad_gates_B4H.view(batch, -1), weight_hh, out=grad_hidden_BH)
        grad_gates_NG = grad_gates_TB4H.view(steps * batch, -1)
        grad_bias_G = grad_gates_NG.sum(0)
        return (
            torch.mm(grad_gates_NG, weight_ih).view_as(sequence),
            grad_hidden_BH.unsqueeze(0),
            grad_cell_BH.unsqueeze(0),
            torch.mm(grad_gates_NG.t(), sequence.flatten(0, 1)),
            torch.mm(grad_gates_NG.t(), hidden_SBH[:-1].flatten(0, 1)),
            grad_bias_G,
            grad_bias_G,
        )
