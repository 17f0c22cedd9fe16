"""The AWD-LSTM against the gate equations, DropConnect that reaches the raw weight, and the state that is carried."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from highrank.heads import MixtureOfSoftmaxes, Softmax
from highrank.models import AWDLSTM, LanguageModel, LockedDropout, WeightDropout, detached, seed_dropouts
from highrank.models.awd_lstm import DropConnectLSTM
from tests.parity import gradients_of, small_model


def text(steps: int, batch: int, seed: int = 1) -> Tensor:
    return torch.randint(17, (steps, batch), generator=torch.Generator().manual_seed(seed))


def lstm_by_hand(
    lstm: nn.LSTM, weight_hh: Tensor, sequence: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer from the gate equations, with any hidden-to-hidden matrix."""
    (h,), (c,) = state
    outputs = []
    for x in sequence:
        gates = x @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ weight_hh.T + lstm.bias_hh_l0
        enter, forget, candidate, leave = gates.chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * candidate.tanh()
        h = leave.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))


def dropconnect_layer(p: float = 0.5) -> tuple[DropConnectLSTM, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    layer = DropConnectLSTM(4, 6, p).double().train()
    sequence = torch.randn(5, 3, 4, dtype=torch.float64)
    return layer, sequence, (torch.randn(1, 3, 6, dtype=torch.float64), torch.randn(1, 3, 6, dtype=torch.float64))


def mask_of(layer: DropConnectLSTM) -> Tensor:
    """The mask of the call that follows ``seed_dropouts(layer, 1, 2, 3)``."""
    seed_dropouts(layer, 1, 2, 3)
    mask = layer.weight_dropout(torch.ones(24, 6, dtype=torch.float64))
    seed_dropouts(layer, 1, 2, 3)
    assert 0 < (mask == 0).sum() < mask.numel()
    return mask


def test_dropconnect_drops_weights_of_the_hidden_to_hidden_matrix_only() -> None:
    layer, sequence, state = dropconnect_layer()
    mask = mask_of(layer)
    output, new_state = layer(sequence, state)
    expected, expected_state = lstm_by_hand(layer.lstm, layer.lstm.weight_hh_l0 * mask, sequence, state)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(new_state, expected_state)
    layer.eval()
    torch.testing.assert_close(
        layer(sequence, state)[0], lstm_by_hand(layer.lstm, layer.lstm.weight_hh_l0, sequence, state)[0]
    )


def test_dropconnect_gradients_reach_the_raw_weight_where_the_mask_let_through() -> None:
    layer, sequence, state = dropconnect_layer()
    mask = mask_of(layer)
    upstream = torch.randn(5, 3, 6, dtype=torch.float64)
    layer(sequence, state)[0].backward(upstream)
    ours = gradients_of(layer)
    layer.zero_grad()
    lstm_by_hand(layer.lstm, layer.lstm.weight_hh_l0 * mask, sequence, state)[0].backward(upstream)
    torch.testing.assert_close(ours, gradients_of(layer))
    raw = ours["lstm.weight_hh_l0"]
    assert not raw[mask == 0].any()
    assert raw[mask != 0].all()


def test_dropconnect_trains_the_parameter_that_the_next_call_uses() -> None:
    """Hooks and parametrizations of an LSTM go on with a stale copy: a step here must be seen by the next call."""
    layer, sequence, state = dropconnect_layer()
    assert isinstance(layer.lstm.weight_hh_l0, nn.Parameter)
    assert [name for name, _ in layer.named_parameters()].count("lstm.weight_hh_l0") == 1
    optimizer = torch.optim.SGD([layer.lstm.weight_hh_l0], lr=0.5)
    losses = []
    for _ in range(4):
        mask_of(layer)
        loss = layer(sequence, state)[0].pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < 0.99 * losses[0]


def test_what_cudnn_says_of_weights_that_are_replaced_is_not_heard_of_these_layers_only() -> None:
    program = """
import warnings
from highrank.models import awd_lstm
for module in (awd_lstm.__name__, "users.model"):
    text = "RNN module weights are not part of single contiguous chunk of memory."
    warnings.warn_explicit(f"{text} Of {module}", UserWarning, "file.py", 1, module=module)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (said,) = done.stderr.strip().splitlines()
    assert said.endswith("Of users.model")


def test_dropconnect_draws_once_a_call() -> None:
    layer, sequence, state = dropconnect_layer()
    seed_dropouts(layer, 1, 2, 3)
    first, second = (layer(sequence, state)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    seed_dropouts(layer, 1, 2, 3)
    assert torch.equal(layer(sequence, state)[0], first)


def by_hand(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden, raw) of a text from the start, with the masks that the model's dropouts draw now, each in its place."""
    backbone = model.backbone
    ones = torch.ones(len(backbone.embedding), 1, dtype=torch.float64)
    sequence = (backbone.embedding * backbone.embedding_dropout.mask(ones.shape, ones))[tokens]
    state = backbone.initial_state(tokens.shape[1])
    for index, layer in enumerate(backbone.layers):
        dropout = backbone.input_dropout if index == 0 else backbone.hidden_dropouts[index - 1]
        sequence = sequence * dropout.mask((1, *sequence.shape[1:]), sequence)
        weight_hh = layer.lstm.weight_hh_l0
        sequence, _ = lstm_by_hand(
            layer.lstm, weight_hh * layer.weight_dropout.mask(weight_hh.shape, weight_hh), sequence, state[index]
        )
    return sequence * backbone.output_dropout.mask((1, *sequence.shape[1:]), sequence), sequence


def test_every_dropout_stands_in_its_place() -> None:
    model, tokens = small_model(dropout=0.3).train(), text(6, 4)
    seed_dropouts(model, 5, 0, 0)
    hidden, raw = by_hand(model, tokens)
    seed_dropouts(model, 5, 0, 0)
    output = model.backbone(tokens, model.initial_state(4))
    torch.testing.assert_close(output.raw, raw)
    torch.testing.assert_close(output.hidden, hidden)
    assert not torch.allclose(output.hidden, output.raw)


def test_each_probability_reaches_its_dropout() -> None:
    backbone = AWDLSTM(
        17,
        embedding_features=4,
        hidden_features=5,
        out_features=6,
        num_layers=3,
        embedding_dropout=0.11,
        input_dropout=0.12,
        hidden_dropout=0.13,
        output_dropout=0.14,
        weight_dropout=0.15,
    )
    assert backbone.embedding_dropout.p == 0.11
    assert backbone.input_dropout.p == 0.12
    assert [dropout.p for dropout in backbone.hidden_dropouts] == [0.13, 0.13]
    assert backbone.output_dropout.p == 0.14
    assert [layer.weight_dropout.p for layer in backbone.layers] == [0.15] * 3
    assert all(isinstance(dropout, LockedDropout) for dropout in backbone.hidden_dropouts)
    assert all(isinstance(layer.weight_dropout, WeightDropout) for layer in backbone.layers)


@pytest.mark.parametrize(("layers", "widths"), [(1, [6]), (2, [5, 6]), (4, [5, 5, 5, 6])])
def test_the_widths_of_the_layers(layers: int, widths: list[int]) -> None:
    backbone = AWDLSTM(17, embedding_features=4, hidden_features=5, out_features=6, num_layers=layers)
    assert [(layer.lstm.input_size, layer.lstm.hidden_size) for layer in backbone.layers] == list(
        zip([4, *widths[:-1]], widths, strict=True)
    )
    output = backbone(text(3, 2), backbone.initial_state(2))
    assert output.hidden.shape == output.raw.shape == (3, 2, 6)
    assert [(h.shape, c.shape) for h, c in output.state] == [((1, 2, width), (1, 2, width)) for width in widths]
    assert torch.equal(output.hidden, output.raw)  # no output dropout
    assert backbone.embedding.abs().max() <= 0.1


def test_a_carried_state_is_the_text_in_one_piece() -> None:
    model, tokens = small_model().train(), text(9, 2)
    whole = model(tokens[:-1], tokens[1:], model.initial_state(2), reduction="none")
    state, losses = model.initial_state(2), []
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        part = model(tokens[start:stop], tokens[start + 1 : stop + 1], state, reduction="none")
        state = detached(part.state)
        assert not any(x.requires_grad for pair in state for x in pair)
        losses.append(part.loss)
    torch.testing.assert_close(torch.cat(losses), whole.loss)
    torch.testing.assert_close(state, detached(whole.state))
    mean = model(tokens[:-1], tokens[1:], model.initial_state(2)).loss
    torch.testing.assert_close(mean, whole.loss.mean())


def test_columns_do_not_see_each_other() -> None:
    model, tokens = small_model(), text(6, 3)
    state = model.initial_state(3)
    before = model(tokens[:-1], tokens[1:], state, reduction="none").loss
    tokens[2, 1] = (tokens[2, 1] + 1) % 17
    after = model(tokens[:-1], tokens[1:], state, reduction="none").loss
    changed = before != after
    assert not changed[:, [0, 2]].any()
    assert not changed[0, 1]
    assert changed[1:, 1].all()


def test_tied_embeddings_are_one_parameter() -> None:
    def model(*, tied: bool) -> LanguageModel:
        backbone = AWDLSTM(17, embedding_features=4, hidden_features=5, out_features=6, num_layers=2)
        return LanguageModel(backbone, MixtureOfSoftmaxes(6, 17, num_components=2, context_features=4), tied=tied)

    one, two = model(tied=True), model(tied=False)
    assert one.head.weight is one.backbone.embedding
    assert two.head.weight is not two.backbone.embedding
    assert two.num_parameters - one.num_parameters == 17 * 4
    lstms = sum(4 * o * (i + o + 2) for i, o in ((4, 5), (5, 6)))
    assert one.num_parameters == 17 * 4 + lstms + 6 * 2 + (6 + 1) * 8 + 17
    assert one.vocab_size == 17
    backbone = AWDLSTM(17, embedding_features=4, hidden_features=5, out_features=6, num_layers=2)
    with pytest.raises(ValueError, match=r"embedding: expected shape \(17, 6\), got \(17, 4\)"):
        LanguageModel(backbone, Softmax(6, 17))
