"""The dropouts: what shares a mask, how often it is zero, where it is off, and that a position fixes it.

The seeds are fixed, so no test fails by chance. Over all seeds a right dropout would cross a bound of ``DEVIATIONS``
standard deviations once in two million times; one whose share is off by a few percent of itself crosses it always.
"""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from highrank.heads import MixtureOfSoftmaxes
from highrank.models import (
    AWDLSTM,
    Dropout,
    EmbeddingDropout,
    LanguageModel,
    LockedDropout,
    WeightDropout,
    seed_dropouts,
    without_dropout,
)
from tests.parity import small_model

DEVIATIONS = 5.0
PROBABILITIES = (0.1, 0.4, 0.5, 0.65)


def seeded(dropout: Dropout, seed: int = 0) -> Dropout:
    dropout.generator = torch.Generator().manual_seed(seed)
    return dropout


def assert_bernoulli(mask: Tensor, p: float) -> None:
    """Independent draws: 0 with probability p, else 1 / (1 - p), so 1 on average."""
    kept = mask != 0
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
    n = mask.numel()
    assert n >= 10_000, "too few draws to tell"
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs(float((~kept).double().mean()) - p) < DEVIATIONS * deviation
    assert abs(float(mask.double().mean()) - 1) < DEVIATIONS * deviation / (1 - p)


def assert_independent(a: Tensor, b: Tensor) -> None:
    """No correlation between the zeros of two masks of the same shape."""
    assert a.shape == b.shape
    assert a.numel() >= 1_000
    x, y = ((m != 0).double().flatten() for m in (a, b))
    correlation = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
    assert abs(float(correlation)) < DEVIATIONS / math.sqrt(a.numel())


# What shares a mask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_locked_one_mask_for_all_time_steps(p: float, dtype: torch.dtype) -> None:
    mask = seeded(LockedDropout(p))(torch.ones(6, 50, 400, dtype=dtype))
    assert mask.dtype == dtype
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert_bernoulli(mask[0], p)
    assert_independent(mask[0, :-1], mask[0, 1:])  # columns
    assert_independent(mask[0, :, :-1], mask[0, :, 1:])  # features


def test_locked_of_contexts_one_mask_for_all_time_steps() -> None:
    mask = seeded(LockedDropout(0.3))(torch.ones(4, 20, 15, 60))
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert_bernoulli(mask[0], 0.3)
    assert_independent(mask[0, :, :-1], mask[0, :, 1:])  # components


def test_locked_scales_what_it_is_given() -> None:
    sequence = torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(3))
    dropped = seeded(LockedDropout(0.4), 1)(sequence)
    torch.testing.assert_close(dropped, sequence * seeded(LockedDropout(0.4), 1)(torch.ones(5, 7, 11)))
    assert dropped[:, 0, 0].any() or dropped[:, 0, 1].any()


@pytest.mark.parametrize("p", PROBABILITIES)
def test_embedding_whole_words_alike_wherever_they_stand(p: float) -> None:
    vocab = 20_000
    weight = torch.rand(vocab, 3, generator=torch.Generator().manual_seed(1)) + 0.5
    tokens = torch.cat([torch.arange(vocab), torch.arange(vocab).flip(0)]).view(200, -1)
    embedded = seeded(EmbeddingDropout(p))(tokens, weight)
    assert embedded.shape == (*tokens.shape, 3)
    mask = embedded / weight[tokens]
    torch.testing.assert_close(mask, mask[..., :1].expand_as(mask))  # a word is dropped with all its features
    of_occurrence = mask[..., 0].flatten()
    torch.testing.assert_close(of_occurrence[:vocab], of_occurrence[vocab:].flip(0))  # and at both its places
    assert_bernoulli(of_occurrence[:vocab], p)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_weight_single_weights(p: float) -> None:
    dropout = seeded(WeightDropout(p))
    first, second = dropout(torch.ones(100, 200)), dropout(torch.ones(100, 200))
    for mask in (first, second):
        assert_bernoulli(mask, p)
        assert_independent(mask[:-1], mask[1:])
        assert_independent(mask[:, :-1], mask[:, 1:])
    assert_independent(first, second)  # one mask a call


def test_the_mean_of_the_output_is_the_input() -> None:
    """Over 4000 draws, for each kind."""
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    locked, embedding, dropconnect = (seeded(kind(0.5)) for kind in (LockedDropout, EmbeddingDropout, WeightDropout))
    calls: dict[str, Callable[[], Tensor]] = {
        "locked": lambda: locked(weight.unsqueeze(0)).squeeze(0),
        "embedding": lambda: embedding(torch.tensor([0, 1]), weight),
        "weight": lambda: dropconnect(weight),
    }
    for name, call in calls.items():
        mean = torch.stack([call() for _ in range(4000)]).mean(0)
        bound = DEVIATIONS * weight.abs() / math.sqrt(4000)  # the deviation of one draw is the weight itself
        assert ((mean - weight).abs() < bound).all(), name


# On and off -----------------------------------------------------------------------------------------------------------


def each_kind(p: float) -> Iterator[tuple[Dropout, tuple[Tensor, ...], Tensor]]:
    """(dropout, its arguments, what it gives when off)."""
    x = torch.rand(30, 4, 10, generator=torch.Generator().manual_seed(2)) + 0.5
    yield LockedDropout(p), (x,), x
    yield WeightDropout(p), (x[0],), x[0]
    tokens = torch.arange(30).view(15, 2)
    yield EmbeddingDropout(p), (tokens, x[:, 0]), x[:, 0][tokens]


def test_off_in_evaluation_and_for_a_probability_of_zero() -> None:
    for dropout, arguments, off in each_kind(0.5):
        assert dropout.active
        assert not torch.equal(seeded(dropout)(*arguments), off)
        dropout.eval()
        assert not dropout.active
        assert torch.equal(dropout(*arguments), off)
    for dropout, arguments, off in each_kind(0.0):
        assert not dropout.active
        assert torch.equal(dropout(*arguments), off)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("kind", [LockedDropout, EmbeddingDropout, WeightDropout])
def test_a_probability_out_of_range_is_named(kind: type[Dropout], p: float) -> None:
    with pytest.raises(ValueError, match=f"p: expected a probability from 0 to below 1, got {p}"):
        kind(p)


# A position fixes the masks -------------------------------------------------------------------------------------------


def wide_model() -> LanguageModel:
    """Two hidden dropouts and three weight dropouts of the same shape, with enough masks to tell them apart."""
    backbone = AWDLSTM(
        2000,
        embedding_features=40,
        hidden_features=40,
        out_features=40,
        num_layers=3,
        embedding_dropout=0.5,
        input_dropout=0.5,
        hidden_dropout=0.5,
        output_dropout=0.5,
        weight_dropout=0.5,
    )
    head = MixtureOfSoftmaxes(40, 2000, num_components=2, context_dropout=LockedDropout(0.5))
    return LanguageModel(backbone, head).train()


def masks(model: nn.Module, seed: int, step: int, micro_batch: int) -> dict[str, Tensor]:
    """The mask that each dropout draws at a position."""
    seed_dropouts(model, seed, step, micro_batch)
    drawn = {}
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            drawn[name] = module.mask((40, 40), torch.ones(()))
    assert len(drawn) == 9
    return drawn


def test_the_backward_pass_of_dropconnect_keeps_a_byte_for_each_weight() -> None:
    weight, kept = torch.randn(100, 40, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        dropped = seeded(WeightDropout(0.3), 5)(weight)
    assert sum(tensor.nbytes for tensor in kept) < 4000 + 100
    mask = seeded(WeightDropout(0.3), 5).mask((100, 40), weight)
    assert torch.equal(dropped, weight * mask)
    upstream = torch.randn(100, 40)
    assert torch.equal(torch.autograd.grad(dropped, weight, upstream)[0], upstream * mask)


def test_the_same_position_has_the_same_masks() -> None:
    model, other = wide_model(), wide_model()
    first = masks(model, 7, 3, 1)
    masks(model, 7, 4, 0)  # what is drawn in between, and from the global generator, means nothing
    torch.rand(3)
    torch.testing.assert_close(masks(model, 7, 3, 1), first, rtol=0, atol=0)
    torch.testing.assert_close(masks(other, 7, 3, 1), first, rtol=0, atol=0)


def test_another_position_has_other_masks() -> None:
    model = wide_model()
    places = [(7, 3, 1), (8, 3, 1), (7, 4, 1), (7, 3, 2), (7, 1, 3), (3, 7, 1)]
    drawn = [masks(model, *place) for place in places]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            for name in one:
                assert_independent(one[name], other[name])


def test_modules_draw_independently() -> None:
    drawn = list(masks(wide_model(), 7, 3, 1).items())
    for i, (name, one) in enumerate(drawn):
        for other_name, other in drawn[:i]:
            assert name != other_name
            assert_independent(one, other)


def test_a_position_fixes_a_training_pass() -> None:
    model = small_model(dropout=0.3).train()
    tokens = torch.randint(17, (8, 3), generator=torch.Generator().manual_seed(1))
    state = model.initial_state(3)

    def loss(*position: int) -> float:
        seed_dropouts(model, *position)
        return float(model(tokens[:-1], tokens[1:], state).loss.detach())

    first = loss(1, 0, 0)
    assert loss(1, 1, 0) != first
    assert loss(1, 0, 1) != first
    assert loss(2, 0, 0) != first
    assert loss(1, 0, 0) == first


# without_dropout ------------------------------------------------------------------------------------------------------


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("training", [True, False])
def test_without_dropout_is_training_mode_with_every_dropout_off(training: bool) -> None:
    model = small_model(dropout=0.3).train(training)
    model.head.training = not training  # modes that are mixed come back mixed
    before = modes(model)
    tokens = torch.randint(17, (8, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = small_model()(tokens[:-1], tokens[1:], model.initial_state(3)).loss
        with without_dropout(model):
            kinds = {type(module) for module in model.modules() if isinstance(module, Dropout)}
            assert kinds == {LockedDropout, EmbeddingDropout, WeightDropout}
            assert not any(module.active for module in model.modules() if isinstance(module, Dropout))
            lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
            assert len(lstms) == 3
            assert all(module.training for module in lstms)  # or cuDNN has no backward
            assert torch.equal(model(tokens[:-1], tokens[1:], model.initial_state(3)).loss, plain)
    assert modes(model) == before


def test_without_dropout_may_keep_dropconnect() -> None:
    model = small_model(dropout=0.3).eval()
    with without_dropout(model, keep_weight_dropout=True):
        for module in model.modules():
            if isinstance(module, Dropout):
                assert module.active == isinstance(module, WeightDropout)
    assert not any(modes(model).values())


def test_without_dropout_restores_the_modes_after_an_error() -> None:
    model = small_model(dropout=0.3).eval()

    def fail() -> None:
        with without_dropout(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(modes(model).values())
