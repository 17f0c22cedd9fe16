"""The textbook model is what other tests believe: here it is held against arithmetic done by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import textbook
from benchmarks.textbook import TextbookModel

NO_DROPOUT = dict.fromkeys(("dropout", "dropouth", "dropouti", "dropoute", "dropoutl", "wdrop"), 0.0)
OPTIONS = {"lr": 2.0, "seq_len": 3, "bptt": 6, "alpha": 2.0, "beta": 1.0, "clip": 0.25}
VOCAB = 7


def tiny(seed: int = 0, **changes: float) -> TextbookModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "emsize": 3, "nhid": 5, "nhidlast": 4, "nlayers": 2, "n_experts": 2}
    model = TextbookModel(**{**sizes, **changes}).double()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start of training, so that every term counts
            parameter.uniform_(-0.8, 0.8)
    return model


def text(length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def by_hand(model: TextbookModel, tokens: list[int]) -> list[Tensor]:
    """Log-probabilities (V,) after each token of one column, from the gate equations, one step and expert at a time."""
    weights = model.state_dict()
    h = [torch.zeros(width).double() for width in model.widths[1:]]
    c = [state.clone() for state in h]
    result = []
    for token in tokens:
        x = weights["encoder.weight"][token]
        for layer in range(len(h)):
            w = {name: weights[f"rnns.{layer}.module.{name}"] for name in model.rnns[layer].module}
            gates = w["weight_ih_l0"] @ x + w["bias_ih_l0"] + w["weight_hh_l0_raw"] @ h[layer] + w["bias_hh_l0"]
            enter, forget, candidate, leave = gates.chunk(4)
            c[layer] = forget.sigmoid() * c[layer] + enter.sigmoid() * candidate.tanh()
            h[layer] = leave.sigmoid() * c[layer].tanh()
            x = h[layer]
        contexts = (weights["latent.0.weight"] @ x + weights["latent.0.bias"]).tanh().chunk(model.n_experts)
        prior = (weights["prior.weight"] @ x).exp()
        probability = torch.zeros(VOCAB).double()
        for pi, context in zip(prior / prior.sum(), contexts, strict=True):
            scores = (weights["decoder.weight"] @ context + weights["decoder.bias"]).exp()
            probability += pi * scores / scores.sum()
        result.append(probability.log())
    return result


@pytest.mark.parametrize(
    ("vocab_size", "emsize", "nhid", "nhidlast", "expected"),
    [(10_000, 280, 960, 620, 21_500_620), (33_278, 300, 1150, 650, 34_909_528)],
    ids=["penn-treebank", "wikitext-2"],
)
def test_parameter_count_of_the_paper(vocab_size: int, emsize: int, nhid: int, nhidlast: int, expected: int) -> None:
    with torch.device("meta"):
        model = TextbookModel(vocab_size, emsize, nhid, nhidlast, nlayers=3, n_experts=15)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_names_and_initial_values() -> None:
    model = TextbookModel(VOCAB, emsize=3, nhid=5, nhidlast=4, nlayers=2, n_experts=2)
    names = {"encoder.weight", "prior.weight", "latent.0.weight", "latent.0.bias", "decoder.weight", "decoder.bias"}
    for layer in range(2):
        lstm = ("weight_ih_l0", "weight_hh_l0_raw", "bias_ih_l0", "bias_hh_l0")
        names |= {f"rnns.{layer}.module.{name}" for name in lstm}
    assert set(model.state_dict()) == names
    assert model.decoder.weight is model.encoder.weight
    assert model.encoder.weight.abs().max() <= 0.1
    assert not model.decoder.bias.any()
    assert model.rnns[1].module["weight_hh_l0_raw"].abs().max() <= 0.5
    assert TextbookModel(VOCAB, emsize=3, nhid=5, dropouth=0.2).widths == [3, 5, 5, 3]
    assert TextbookModel(VOCAB, emsize=3, nhid=5, dropouth=0.2).dropoutl == 0.2


def test_forward_is_the_equations_and_carries_the_state() -> None:
    model, columns = tiny().eval(), textbook.to_columns(text(14), 2)
    first = model(columns[:4], model.init_hidden(2))
    second = model(columns[4:], first[3])
    log_prob = torch.cat([first[0], second[0]]).view(7, 2, VOCAB)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(7, 2).double())
    for column in range(2):
        torch.testing.assert_close(log_prob[:, column], torch.stack(by_hand(model, columns[:, column].tolist())))
    assert first[1].shape == first[2].shape == (4, 2, 4)
    assert torch.equal(first[1], first[2])


def test_epsilon_stands_inside_the_logarithm() -> None:
    exact, old = tiny().eval(), tiny(epsilon=1e-2).eval()
    tokens = textbook.to_columns(text(6), 2)
    log_prob, with_epsilon = (model(tokens, model.init_hidden(2))[0] for model in (exact, old))
    torch.testing.assert_close(with_epsilon, (log_prob.exp() + 1e-2).log())


@pytest.mark.parametrize("training", [False, True])
def test_gradient_is_the_finite_difference(training: bool) -> None:
    """In training the same seed gives the same masks: every dropout is differentiated through."""
    model = tiny(emsize=2, nhid=3, nhidlast=2).train(training)
    names = [name for name, _ in model.named_parameters()]
    columns = textbook.to_columns(text(8), 2)

    def objective(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        weights = dict(zip(names, values, strict=True))
        output = torch.func.functional_call(model, weights, (columns[:-1], model.init_hidden(2)), tie_weights=True)
        return textbook.loss(output, columns[1:], alpha=2.0, beta=1.0)[0]

    assert torch.autograd.gradcheck(objective, tuple(model.parameters()))


def test_gradient_reaches_the_raw_weights_only_where_the_mask_let_through() -> None:
    model, columns = tiny(wdrop=0.5).train(), textbook.to_columns(text(12), 2)
    log_prob, *_ = model(columns[:-1], model.init_hidden(2))
    F.nll_loss(log_prob, columns[1:].reshape(-1)).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()
    raw = model.rnns[0].module["weight_hh_l0_raw"].grad  # (4 * 5, 5)
    assert 20 < (raw == 0).sum() < 80


def test_dropout_masks_are_shared_as_documented() -> None:
    torch.manual_seed(0)
    ones = torch.ones(50, 4, 6)
    locked = textbook.shared_dropout(ones, 0, 0.5, True)
    assert torch.equal(locked, locked[:1].expand_as(locked))
    assert locked.unique().tolist() == [0.0, 2.0]
    words = textbook.shared_dropout(torch.ones(200, 3), 1, 0.75, True)
    assert torch.equal(words, words[:, :1].expand_as(words))
    assert words.unique().tolist() == [0.0, 4.0]
    assert textbook.shared_dropout(ones, 0, 0.5, False) is ones


@pytest.mark.parametrize("name", NO_DROPOUT)
def test_every_dropout_acts_in_training_only(name: str) -> None:
    columns = textbook.to_columns(text(12), 2)
    still, model = tiny(**NO_DROPOUT), tiny(**{**NO_DROPOUT, name: 0.5})
    expected = still.train()(columns, still.init_hidden(2))[0]
    torch.testing.assert_close(model.eval()(columns, model.init_hidden(2))[0], expected)
    assert not torch.allclose(model.train()(columns, model.init_hidden(2))[0], expected)


def test_dropouts_stand_where_the_paper_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        textbook, "shared_dropout", lambda x, shared, p, training: calls.append((tuple(x.shape), shared, p)) or x
    )
    model = tiny(nlayers=3, dropout=0.1, dropouth=0.2, dropouti=0.3, dropoute=0.4, dropoutl=0.6)
    model(textbook.to_columns(text(12), 2), model.init_hidden(2))
    words, inputs = ((VOCAB, 3), 1, 0.4), ((6, 2, 3), 0, 0.3)
    between, output, context = ((6, 2, 5), 0, 0.2), ((6, 2, 4), 0, 0.1), ((6, 2, 2 * 3), 0, 0.6)
    assert calls == [words, inputs, between, between, output, context]


def test_loss_counts_dropped_and_raw_outputs() -> None:
    model, columns = tiny().train(), textbook.to_columns(text(8), 2)
    log_prob, raw, dropped, hidden = model(columns[:-1], model.init_hidden(2))
    total, nll = textbook.loss((log_prob, raw, dropped, hidden), columns[1:], alpha=3.0, beta=5.0)
    expected = -sum(log_prob[i, target] for i, target in enumerate(columns[1:].flatten())) / 6
    torch.testing.assert_close(nll, expected)
    steps = sum(((raw[t + 1] - raw[t]) ** 2).sum() for t in range(2)) / raw[1:].numel()
    torch.testing.assert_close(total, nll + 3 * (dropped**2).sum() / dropped.numel() + 5 * steps)
    assert not torch.equal(raw, dropped)
    assert textbook.loss((log_prob[:2], raw[:1], dropped[:1], hidden), columns[1:2], 0.0, 5.0)[0].isfinite()


def test_train_step_is_clipped_gradient_descent() -> None:
    model, columns = tiny(**NO_DROPOUT), textbook.to_columns(text(8), 2)
    before = [p.detach().clone() for p in model.parameters()]
    output = model(columns[:-1], model.init_hidden(2))
    total, expected_nll = textbook.loss(output, columns[1:], 2.0, 1.0)
    gradients = torch.autograd.grad(total, list(model.parameters()))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > 0.25
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, weight_decay=0.01)
    nll, hidden = textbook.train_step(model, optimizer, columns[:-1], columns[1:], model.init_hidden(2), **OPTIONS)
    torch.testing.assert_close(nll, expected_nll.detach())
    torch.testing.assert_close(hidden, textbook.detach_hidden(output[3]))
    for now, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(now, old - 1.0 * (gradient * 0.25 / norm + 0.01 * old), rtol=1e-5, atol=1e-7)
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_accumulated_groups_are_one_step() -> None:
    whole, grouped = tiny(**NO_DROPOUT), tiny(**NO_DROPOUT)
    columns = textbook.to_columns(text(24), 6)
    sgd = [torch.optim.SGD(model.parameters(), lr=2.0) for model in (whole, grouped)]
    states = [grouped.init_hidden(2) for _ in range(3)]
    nll, _ = textbook.train_step(whole, sgd[0], columns[:-1], columns[1:], whole.init_hidden(6), **OPTIONS)
    again, states = textbook.accumulated_step(grouped, sgd[1], columns[:-1], columns[1:], states, **OPTIONS)
    torch.testing.assert_close(nll, again)
    torch.testing.assert_close(list(whole.parameters()), list(grouped.parameters()))
    assert [h.shape[1] for group in states for h, _ in group] == [2] * 6
    with pytest.raises(ValueError, match="equal groups"):
        textbook.accumulated_step(grouped, sgd[1], columns[:-1], columns[1:], states + states[:1], **OPTIONS)


def test_averaged_weights_are_swapped_in_and_out() -> None:
    model, columns = tiny(**NO_DROPOUT), textbook.to_columns(text(8), 2)
    optimizer = torch.optim.ASGD(model.parameters(), lr=2.0, t0=0, lambd=0.0)
    iterates = []
    for _ in range(4):
        textbook.train_step(model, optimizer, columns[:-1], columns[1:], model.init_hidden(2), **OPTIONS)
        iterates.append(model.decoder.bias.detach().clone())
    with textbook.averaged_weights(optimizer):  # PyTorch starts the average at the second iterate
        torch.testing.assert_close(model.decoder.bias.detach(), sum(iterates[1:]) / 3)
        assert model.decoder.weight is model.encoder.weight
    assert torch.equal(model.decoder.bias, iterates[-1])


@pytest.mark.parametrize(("batch", "bptt", "length"), [(1, 4, 14), (2, 3, 13), (3, 70, 20)])
def test_evaluate_is_brute_force(batch: int, bptt: int, length: int) -> None:
    model, tokens = tiny(), text(length)
    columns = tokens[: length // batch * batch].view(batch, -1).tolist()
    losses = [-row[y].item() for col in columns for row, y in zip(by_hand(model, col[:-1]), col[1:], strict=True)]
    assert textbook.evaluate(model, tokens, batch, bptt) == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    paper = sum(losses) / batch / (length // batch)
    assert textbook.evaluate_paper(model, tokens, batch, bptt) == pytest.approx(paper, rel=1e-12)


@pytest.mark.parametrize(("steps", "lengths"), [(11, [5, 5]), (12, [5, 5]), (13, [5, 5, 2])])
def test_statistics_sum_the_squared_gradients_of_the_segments(steps: int, lengths: list[int]) -> None:
    model, tokens = tiny(), text(2 * steps + 1)
    columns, hidden, start = textbook.to_columns(tokens, 2), model.init_hidden(2), 0
    model.eval()
    squares = [torch.zeros_like(p) for p in model.parameters()]
    for length in lengths:
        log_prob, _, _, hidden = model(columns[start : start + length], textbook.detach_hidden(hidden))
        nll = F.nll_loss(log_prob, columns[start + 1 : start + 1 + length].reshape(-1))
        gradients = torch.autograd.grad(nll, list(model.parameters()))
        squares = [square + gradient**2 for square, gradient in zip(squares, gradients, strict=True)]
        start += length
    rms = textbook.dynamic_statistics(model, tokens, batch=2, bptt=5)
    torch.testing.assert_close(rms, [square.sqrt() for square in squares])
    rms = textbook.dynamic_statistics(model, tokens, batch=2, bptt=5, mean_square=True)
    torch.testing.assert_close(rms, [(square / len(lengths)).sqrt() for square in squares])


def test_dynamic_evaluation_without_a_step_is_evaluation() -> None:
    model, tokens = tiny(), text(27)
    rms = [torch.ones_like(p) for p in model.parameters()]
    dynamic = textbook.dynamic_evaluate(model, tokens, rms, lamb=0.0, lr=0.0, epsilon=0.001)
    assert dynamic == pytest.approx(textbook.evaluate(model, tokens), rel=1e-12)


def test_dynamic_evaluation_scores_then_steps() -> None:
    model, tokens = tiny(), text(12)
    rms = textbook.dynamic_statistics(model, text(80, seed=2), batch=2)
    original = [p.detach().clone() for p in model.parameters()]
    w = list(original)
    total_rms = sum(float(r.mean()) for r in rms)
    lamb, lr, epsilon = 9.0, 0.05, 0.01
    assert any((lamb * r / total_rms > 1).any() for r in rms)  # the bound on the decay is reached
    twin, total = tiny().eval(), 0.0
    hidden = twin.init_hidden(1)
    for start, length in ((0, 5), (5, 5), (10, 1)):
        for parameter, value in zip(twin.parameters(), w, strict=True):
            parameter.data.copy_(value)
        segment = tokens[start : start + length + 1].unsqueeze(1)
        log_prob, _, _, hidden = twin(segment[:-1], textbook.detach_hidden(hidden))
        nll = F.nll_loss(log_prob, segment[1:].flatten())
        total += nll.item() * length
        gradients = torch.autograd.grad(nll, list(twin.parameters()))
        for i, (r, gradient) in enumerate(zip(rms, gradients, strict=True)):
            decay = torch.where(r / total_rms > 1 / lamb, 1 / lamb, r / total_rms)
            w[i] = w[i] + lamb * decay * (original[i] - w[i]) - lr * gradient / (r + epsilon)
    scored = textbook.dynamic_evaluate(model, tokens, rms, lamb=lamb, lr=lr, epsilon=epsilon)
    assert scored == pytest.approx(total / 11, rel=1e-9)
    torch.testing.assert_close([p.detach() for p in model.parameters()], w)

    options = {"lamb": lamb, "lr": lr, "epsilon": epsilon}
    without_tail = textbook.dynamic_evaluate(tiny(), tokens, rms, shortest=2, **options)
    assert without_tail == textbook.dynamic_evaluate(tiny(), tokens[:11], rms, **options)
