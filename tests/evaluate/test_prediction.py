"""What is said of the next word and of the components behind it, against probabilities computed one by one."""

import math
import re

import pytest
import torch
from torch import Tensor

from benchmarks.harness import memory_of
from highrank.evaluate import prediction
from highrank.evaluate.prediction import predict_next
from highrank.heads import Head, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from highrank.models import AWDLSTM, LanguageModel
from tests.parity import default_dtype, small_model

HIDDEN, WORDS, COMPONENTS = 7, 17, 4


def model_with(head: type[Head]) -> LanguageModel:
    """float64, with weights large enough that no two words are alike."""
    with default_dtype(torch.float64):
        settings = {} if head is Softmax else {"num_components": COMPONENTS}
        backbone = AWDLSTM(WORDS, embedding_features=6, hidden_features=9, out_features=HIDDEN, num_layers=2)
        model = LanguageModel(backbone, head(HIDDEN, WORDS, context_features=6, **settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model.eval()


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def softmax(logits: list[float]) -> list[float]:
    powered = [math.exp(x) for x in logits]
    return [x / sum(powered) for x in powered]


def brute_force(model: LanguageModel, hidden: Tensor) -> tuple[list[float], list[list[float]]]:
    """(prior of each component, probabilities of each component) after one hidden state, from the weights."""
    weights = dict(model.head.named_parameters())
    projected = torch.tanh(weights["projection.weight"] @ hidden + weights["projection.bias"])
    contexts = projected.chunk(1 if isinstance(model.head, Softmax) else COMPONENTS)
    prior = [1.0] if isinstance(model.head, Softmax) else softmax((weights["prior.weight"] @ hidden).tolist())
    if isinstance(model.head, MixtureOfContexts):
        contexts = [sum((p * c for p, c in zip(prior, contexts, strict=True)), torch.zeros(6))]
        prior = [1.0]
    return prior, [softmax((weights["weight"] @ context + weights["bias"]).tolist()) for context in contexts]


@pytest.mark.parametrize("head", [Softmax, MixtureOfContexts, MixtureOfSoftmaxes])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_prediction_is_brute_force(head: type[Head], temperature: float) -> None:
    model, hidden, came = model_with(head), states(5), [3, 0, 16, 8, 3]
    predicted = predict_next(model, hidden, target=torch.tensor(came), top=6, temperature=temperature, keep_full=True)
    assert predicted.met is not None
    assert predicted.full is not None
    for place, word in enumerate(came):
        prior, components = brute_force(model, hidden[place])
        mixture = [sum(p * q[v] for p, q in zip(prior, components, strict=True)) for v in range(WORDS)]
        powered = [q ** (1 / temperature) for q in mixture]
        tempered = [q / sum(powered) for q in powered]
        order = sorted(range(WORDS), key=lambda v: -tempered[v])
        assert predicted.full[place].exp().tolist() == pytest.approx(tempered, rel=1e-10)
        assert predicted.words[place].tolist() == order[:6]
        assert predicted.log_prob[place].exp().tolist() == pytest.approx([tempered[v] for v in order[:6]], rel=1e-10)
        assert float(predicted.entropy[place]) == pytest.approx(-sum(q * math.log(q) for q in tempered), rel=1e-10)
        assert predicted.prior[place].tolist() == pytest.approx(prior, rel=1e-10)
        for k, own in enumerate(components):
            best = sorted(range(WORDS), key=lambda v: -own[v])[:6]
            assert predicted.component_words[place, k].tolist() == best
            assert predicted.component_log_prob[place, k].exp().tolist() == pytest.approx([own[v] for v in best])
        for n, v in enumerate(order[:6]):
            share = [p * q[v] / mixture[v] for p, q in zip(prior, components, strict=True)]
            assert predicted.word_posterior[place, n].tolist() == pytest.approx(share, rel=1e-10)
        joint = [p * q[word] for p, q in zip(prior, components, strict=True)]
        assert float(predicted.met.surprisal[place]) == pytest.approx(-math.log(tempered[word]), rel=1e-10)
        assert predicted.met.posterior[place].tolist() == pytest.approx([j / sum(joint) for j in joint], rel=1e-10)
        assert predicted.met.component_log_prob[place].exp().tolist() == pytest.approx([q[word] for q in components])


def test_it_agrees_with_the_head_and_with_the_loss() -> None:
    model, hidden, target = model_with(MixtureOfSoftmaxes), states(4, 3), torch.arange(12).view(4, 3)
    predicted = predict_next(model, hidden, target=target, keep_full=True)
    torch.testing.assert_close(predicted.full, model.head.log_prob(hidden))
    assert predicted.met is not None
    torch.testing.assert_close(predicted.met.surprisal, model.head(hidden, target, reduction="none").detach())


def test_only_a_mixture_of_contexts_has_weights_of_contexts() -> None:
    weights = predict_next(model_with(MixtureOfContexts), states(5)).context_weights
    assert weights is not None
    assert weights.shape == (5, COMPONENTS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, dtype=torch.float64))
    assert predict_next(model_with(MixtureOfSoftmaxes), states(5)).context_weights is None
    assert predict_next(model_with(Softmax), states(5)).context_weights is None


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hidden, target = model_with(MixtureOfSoftmaxes), states(7), torch.arange(7)
    whole = predict_next(model, hidden, target=target, keep_full=True)
    monkeypatch.setattr(prediction, "BLOCK_BYTES", 2 * 8 * WORDS * COMPONENTS)  # two positions, then three, then one
    parts = predict_next(model, hidden, target=target, keep_full=True)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes_follow_the_hidden_states(shape: tuple[int, ...]) -> None:
    predicted = predict_next(
        model_with(MixtureOfSoftmaxes), states(*shape), target=torch.zeros(shape, dtype=torch.int64), top=30
    )
    assert predicted.words.shape == predicted.log_prob.shape == (*shape, WORDS)  # there are no more
    assert predicted.component_words.shape == (*shape, COMPONENTS, WORDS)
    assert predicted.word_posterior.shape == (*shape, WORDS, COMPONENTS)
    assert predicted.entropy.shape == shape
    assert predicted.met is not None
    assert predicted.met.posterior.shape == (*shape, COMPONENTS)
    assert predicted.full is None


def test_dropout_is_off_and_the_mode_stays() -> None:
    model = small_model(dropout=0.5).train()
    one, again = (predict_next(model, states(9)).log_prob for _ in range(2))
    assert torch.equal(one, again)
    assert all(module.training for module in model.modules())


def test_memory_is_that_of_a_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many positions: 8 components of 500 words are 16 kB a position."""
    monkeypatch.setattr(prediction, "BLOCK_BYTES", 2**19)
    backbone = AWDLSTM(500, embedding_features=8, hidden_features=8, out_features=8, num_layers=1)
    model = LanguageModel(backbone, MixtureOfSoftmaxes(8, 500, num_components=8)).eval()
    hidden = torch.randn(1000, 8)
    assert memory_of(lambda: predict_next(model, hidden)).peak_bytes < 10 * 2**19  # of the 32 that they all are


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top": 0}, "top: expected at least 1 word, got 0"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target: expected shape (5,) like hidden, got (3,)"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        predict_next(model_with(Softmax), states(5), **settings)  # type: ignore[arg-type]
