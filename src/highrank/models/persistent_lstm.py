"""An LSTM layer on an NVIDIA GPU in one launch, with the recurrent weight in the processors' own memory throughout.

A step of a narrow batch multiplies so little that its time is that of fetching the weight and of launching, which
cuDNN does for every step: its own persistent kernels take none of the paper's sizes. Here a program has some units of
the layer and loads their rows of the weight once, into the shared memory of its processor (for the 960 units of Penn
Treebank 60 KB in each of 120). In every step each program multiplies all of the last step's hidden states with its
rows, computes its units' new states, writes them, and waits until all others have: what travels in a step is B x H
numbers to each program (4 B x H in the backward pass), and one counter. The products of the input, and all gradients of
weights, are left to the vendor's library, for all steps at once. Source of the idea: Diamos et al. 2016, "Persistent
RNNs" (proceedings.mlr.press/v48/diamos16).

Products are of numbers in half precision and are summed in float32; the cell stays in float32.
"""

from typing import Any

import torch
from torch import Tensor

from highrank.ops import triton

__all__ = ["cannot_run", "persistent_lstm"]


def cannot_run(device: torch.device, dtype: torch.dtype, batch: int, width: int) -> str | None:
    """Why a layer of this width cannot be run there with a batch of this many columns, in a few words; None if it can.

    In Triton's interpreter, on a CPU, any size can, in float16 and float32.
    """
    if (reason := triton.cannot_run(device)) is not None:
        return reason
    if device.type == "cpu":  # whose products of bfloat16 are of its bits, taken for integers
        return "Triton's interpreter cannot multiply bfloat16" if dtype == torch.bfloat16 else None
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in half precision, not in {dtype}"
    from highrank.models.persistent_lstm_kernels import chip_of, launch_for  # triton is optional, and slow to import

    chip = chip_of(device)
    if launch_for(width, batch, dtype, chip) is not None:
        return None
    room = f"the {chip.processors} processors of {device} with {chip.shared_bytes} bytes each"
    return f"a layer of {width} units and a batch of {batch} do not fit into {room}"


def persistent_lstm(
    sequence: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, one direction, as ``torch.lstm``.

    Shape: sequence (T, B, I); state two of (1, B, H), of which the cell is float32; weight_ih (4H, I), weight_hh
    (4H, H) and biases (4H) with the gates in PyTorch's order: input, forget, cell, output. Returns the outputs
    (T, B, H) and the state after them. Two runs give the same bits.
    """
    outputs, hidden, cell = _Function.apply(  # type: ignore[no-untyped-call]
        sequence, *state, weight_ih, weight_hh, bias_ih, bias_hh
    )
    return outputs, hidden, cell


class _Function(torch.autograd.Function):
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
    ) -> tuple[Tensor, ...]:
        from highrank.models.persistent_lstm_kernels import forward

        steps, batch, _ = sequence.shape
        gates_NG = torch.addmm(bias_ih + bias_hh, sequence.flatten(0, 1), weight_ih.t())
        gates_TBG = gates_NG.view(steps, batch, -1)
        states_SBH = [state.new_empty((steps + 1, *state.shape[1:])) for state in (hidden, cell)]
        for states, first in zip(states_SBH, (hidden, cell), strict=True):
            states[:1] = first
        hidden_SBH, cell_SBH = states_SBH
        forward(gates_TBG, hidden_SBH, cell_SBH, weight_hh.contiguous())
        ctx.save_for_backward(sequence, weight_ih, weight_hh, gates_TBG, hidden_SBH, cell_SBH)
        ctx.set_materialize_grads(False)
        # Copies, since autograd would take views of what is kept for changes of it.
        return hidden_SBH[1:].clone(), hidden_SBH[-1:].clone(), cell_SBH[-1:].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_outputs: Tensor | None, grad_hidden: Tensor | None, grad_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        from highrank.models.persistent_lstm_kernels import backward

        sequence, weight_ih, weight_hh, gates_TBG, hidden_SBH, cell_SBH = ctx.saved_tensors
        before_TBH = hidden_SBH[:-1]
        grad_outputs = torch.zeros_like(before_TBH) if grad_outputs is None else grad_outputs.contiguous()
        if grad_hidden is not None:
            grad_outputs = torch.cat([grad_outputs[:-1], grad_outputs[-1:] + grad_hidden])
        contiguous = torch.contiguous_format
        grad_cell = torch.zeros_like(cell_SBH[:1]) if grad_cell is None else grad_cell.clone(memory_format=contiguous)
        grad_gates_TBG = torch.empty_like(gates_TBG)
        backward(grad_outputs, gates_TBG, cell_SBH, weight_hh.t().contiguous(), grad_gates_TBG, grad_cell.squeeze(0))
        grad_NG = grad_gates_TBG.flatten(0, 1)
        needs = ctx.needs_input_grad
        grad_bias = grad_NG.sum(0) if needs[5] or needs[6] else None
        return (
            torch.mm(grad_NG, weight_ih).view_as(sequence) if needs[0] else None,
            torch.mm(grad_gates_TBG[0], weight_hh).unsqueeze(0) if needs[1] else None,
            grad_cell if needs[2] else None,
            torch.mm(grad_NG.t(), sequence.flatten(0, 1)) if needs[3] else None,
            torch.mm(grad_NG.t(), before_TBH.flatten(0, 1)) if needs[4] else None,
            grad_bias if needs[5] else None,
            grad_bias if needs[6] else None,
        )
