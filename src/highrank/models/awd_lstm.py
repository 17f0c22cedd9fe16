"""The AWD-LSTM backbone: tokens in, hidden states of the last layer out. Source: Merity et al. 2017 (1708.02182)."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from highrank.models.dropout import EmbeddingDropout, LockedDropout, WeightDropout
from highrank.models.persistent_lstm import persistent_lstm
from highrank.models.short_lstm import is_short, short_lstm
from highrank.ops.autocast import is_autocast_on

__all__ = ["AWDLSTM", "BackboneOutput", "DropConnectLSTM", "State"]

# DropConnect hands cuDNN a new hidden-to-hidden matrix at every call, so its weights cannot lie in one flat buffer: it
# copies them, and would say so at every step. Silenced for the calls from here: of other LSTMs it is worth knowing. Not
# by catch_warnings around the call: threads disturb it, and after it Python repeats what it otherwise says once.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk", module=__name__)

State = list[tuple[Tensor, Tensor]]  # (hidden, cell) of each layer, (1, B, H) each


class BackboneOutput(NamedTuple):
    """hidden (T, B, H) after the output dropout, raw (T, B, H) before it, and the state to carry on with."""

    hidden: Tensor
    raw: Tensor
    state: State


class DropConnectLSTM(nn.Module):
    """One LSTM layer whose hidden-to-hidden matrix loses single weights in training, by one mask a call.

    Shape: sequence (T, B, in_features) and the state, hidden and cell (1, B, out_features) each -> outputs
    (T, B, out_features) and the state after them.
    The dropped matrix is an explicit argument of the call. Hooks and ``nn.utils.parametrize`` leave the LSTM with a
    stale copy and freeze the weight without a word (pytorch#65688). Under autocast a GPU computes in its dtype, a CPU
    in that of the sequence; outputs and states have that of the sequence. ``persistent``: under autocast by
    ``persistent_lstm``, in autocast's dtype on any device.
    """

    def __init__(self, in_features: int, out_features: int, weight_dropout: float, *, persistent: bool = False) -> None:
        super().__init__()
        self.persistent = persistent
        self.lstm = nn.LSTM(in_features, out_features)
        self.weight_dropout = WeightDropout(weight_dropout)

    def forward(self, sequence: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        lstm = self.lstm
        weights = [lstm.weight_ih_l0, self.weight_dropout(lstm.weight_hh_l0), lstm.bias_ih_l0, lstm.bias_hh_l0]
        device_type = sequence.device.type
        if not is_autocast_on(device_type):
            return self._layer(sequence, state, weights)
        # On a CPU PyTorch's LSTM is slower in bfloat16 than in float32 (benchmarks/bench_lstm_precision.py).
        as_it_is = device_type == "cpu" and not self.persistent
        dtype = sequence.dtype if as_it_is else torch.get_autocast_dtype(device_type)
        hidden, cell = state
        with torch.autocast(device_type, enabled=False):
            weights = [weight.to(dtype) for weight in weights]
            if self.persistent:
                output, hidden, cell = persistent_lstm(sequence.to(dtype), (hidden.to(dtype), cell.float()), *weights)
            else:
                output, (hidden, cell) = self._layer(sequence.to(dtype), (hidden.to(dtype), cell.to(dtype)), weights)
        return output.to(sequence.dtype), (hidden.to(sequence.dtype), cell.to(sequence.dtype))

    def _layer(
        self, sequence: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if is_short(sequence):
            output, hidden, cell = short_lstm(sequence, state, *weights)
            return output, (hidden, cell)
        # One plain layer (biases, layers, dropout, train, bidirectional, batch first), by the call beneath nn.LSTM: the
        # module would check and flatten its weights again whenever one of them is replaced.
        output, hidden, cell = torch.lstm(sequence, state, weights, True, 1, 0.0, self.lstm.training, False, False)
        return output, (hidden, cell)


class AWDLSTM(nn.Module):
    """A stack of LSTM layers with every regulariser of the paper.

    The first layers are ``hidden_features`` wide, the last one ``out_features``. Dropouts: ``embedding`` of word types,
    ``input`` of the embedded sequence, ``hidden`` between layers, ``output`` of the last layer, ``weight`` of each
    hidden-to-hidden matrix. ``persistent``: see ``DropConnectLSTM``.

    Shape: tokens (T, B) and ``initial_state(B)``, or the state after the text before them -> ``BackboneOutput``.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embedding_features: int,
        hidden_features: int,
        out_features: int,
        num_layers: int,
        embedding_dropout: float = 0.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        persistent: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, embedding_features))
        nn.init.uniform_(self.embedding, -0.1, 0.1)
        self.embedding_dropout = EmbeddingDropout(embedding_dropout)
        self.input_dropout = LockedDropout(input_dropout)
        sizes = [embedding_features, *[hidden_features] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(
            DropConnectLSTM(n_in, n_out, weight_dropout, persistent=persistent) for n_in, n_out in pairwise(sizes)
        )
        self.hidden_dropouts = nn.ModuleList(LockedDropout(hidden_dropout) for _ in range(num_layers - 1))
        self.output_dropout = LockedDropout(output_dropout)
        self.layer_sizes = sizes[1:]

    def initial_state(self, batch: int) -> State:
        """Zeros for ``batch`` columns."""
        like = self.embedding
        return [(like.new_zeros(1, batch, size), like.new_zeros(1, batch, size)) for size in self.layer_sizes]

    def forward(self, tokens: Tensor, state: Sequence[tuple[Tensor, Tensor]]) -> BackboneOutput:
        """tokens (T, B) and the state after the text before them -> hidden states (T, B, H)."""
        return self.run(self.embed(tokens), state)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (T, B) -> their embeddings (T, B, D)."""
        embedded: Tensor = self.embedding_dropout(tokens, self.embedding)
        return embedded

    def run(self, embedded: Tensor, state: Sequence[tuple[Tensor, Tensor]]) -> BackboneOutput:
        """Embedded tokens (T, B, D) and the state after the text before them -> hidden states (T, B, H)."""
        sequence = self.input_dropout(embedded)
        new_state: State = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            sequence, layer_state = layer(sequence, layer_state)
            new_state.append(layer_state)
            if index < len(self.hidden_dropouts):
                sequence = self.hidden_dropouts[index](sequence)
        return BackboneOutput(self.output_dropout(sequence), sequence, new_state)
