"""Forward and backward of a handful of tokens on a CPU, without autograd's cost for each operation and each gradient.

For so few tokens a matrix takes longer to be read than to be multiplied with, and its gradient, the product of two thin
matrices, longer to be written than all that leads to it. It is handed over as these two, to be multiplied where it is
used.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from highrank.models.awd_lstm import State
from highrank.models.language_model import LanguageModel
from highrank.models.short_lstm import ShortLSTM
from highrank.ops import LossOptions, factored_loss

__all__ = ["Gradients", "ShortSegments"]


class Gradients(Protocol):
    """Who is told the gradients, each as soon as it is known."""

    def along(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """These parameters have these gradients."""

    def matrix(self, weight: Tensor, left: Tensor, right: Tensor) -> None:
        """``weight`` (O, I) has the gradient ``left.T @ right``: left (R, O), right (R, I)."""


class ShortSegments:
    """Of ``model``, whose dropouts are off: segments of (T, 1) tokens that ``is_short``."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._layers: dict[int, list[ShortLSTM]] = {}  # for each T
        self._weights = [list(layer.parameters()) for layer in model.backbone.layers]  # in the order of ``short_lstm``
        head = model.head
        self._own = [weight for weight in head.parameters() if weight is not head.weight and weight is not head.bias]

    @torch.no_grad()
    def run(
        self, tokens: Tensor, target: Tensor, state: Sequence[tuple[Tensor, Tensor]], gradients: Gradients
    ) -> tuple[Tensor, State, Tensor]:
        """Mean loss in nats of ``target`` (T, 1) after ``tokens`` (T, 1) and ``state``, the state after them, and the
        gradient of the tokens' embeddings (T, D). The others go to ``gradients``, the last layer's first."""
        backbone, steps = self._model.backbone, len(tokens)
        layers = self._layers.get(steps)
        if layers is None:
            layers = [ShortLSTM(steps, 1, size, backbone.embedding) for size in backbone.layer_sizes]
            self._layers[steps] = layers
        sequences_TI = [backbone.embed(tokens).squeeze(1)]
        for layer, weights, layer_state in zip(layers, self._weights, state, strict=True):
            layer.forward(sequences_TI[-1], layer_state, *weights)
            sequences_TI.append(layer.outputs.squeeze(1))
        new_state = [layer.state for layer in layers]
        loss, grad_TI = self._head(sequences_TI.pop(), target.squeeze(1), gradients)
        for layer, (weight_ih, weight_hh, *biases) in zip(reversed(layers), reversed(self._weights), strict=True):
            gates_TG, _ = layer.backward(weight_hh, grad_TI.unsqueeze(1))
            grad_TI = torch.mm(gates_TG, weight_ih)
            gradients.matrix(weight_hh, gates_TG, layer.hidden_before)
            gradients.matrix(weight_ih, gates_TG, sequences_TI.pop())
            gradients.along(biases, [gates_TG.sum(0)] * 2)
        return loss, new_state, grad_TI

    def _head(self, hidden_TH: Tensor, target_T: Tensor, gradients: Gradients) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient of ``hidden_TH``."""
        head = self._model.head
        # What makes the components is a few operations of the head's own: they are autograd's.
        with torch.enable_grad():
            hidden_TH = hidden_TH.detach().requires_grad_()
            made = head.components(hidden_TH)
        context_TKD, prior_logits_TK = (part.detach() for part in made)
        settings = (head.options or LossOptions()).settings(context_TKD, head.weight)
        found = factored_loss(context_TKD, prior_logits_TK, head.weight, head.bias, target_T, settings)
        grad_context_RD = torch.mm(found.rows, head.weight).mul_(found.scale)
        gradients.matrix(head.weight, found.rows, found.inputs)
        if head.bias is not None and found.bias is not None:
            gradients.along([head.bias], [found.bias])
        upstream = (grad_context_RD.view_as(context_TKD), found.prior_logits)
        learned = [(part, grad) for part, grad in zip(made, upstream, strict=True) if part.requires_grad]
        grad_hidden_TH, *others = torch.autograd.grad(
            [part for part, _ in learned], [hidden_TH, *self._own], [grad for _, grad in learned]
        )
        gradients.along(self._own, others)
        return found.loss, grad_hidden_TH
