"""Generation: samples of the true mixture, restricted as asked, and the same text for the same seed."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from highrank.data import Vocabulary
from highrank.errors import UserError
from highrank.evaluate import Sampling, generate, generate_text
from highrank.evaluate.generate import restricted_log_prob
from highrank.models import LanguageModel
from tests.parity import small_model
from tests.telling import Telling

PROMPT = [3, 1, 4]


def log_probabilities(seed: int, classes: int = 12, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(classes, generator=generator, dtype=torch.float64) * scale, -1)


def brute_force(log_prob: list[float], sampling: Sampling) -> list[float]:
    """Probabilities, one word at a time, from the words of the docstring."""
    powered = [math.exp(x / sampling.temperature) for x in log_prob]
    p = [x / sum(powered) for x in powered]
    order = sorted(range(len(p)), key=lambda word: -p[word])
    kept = order[: sampling.top_k] if sampling.top_k else order
    if sampling.top_p < 1:
        share = next(n for n in range(1, len(p) + 1) if sum(p[word] for word in order[:n]) >= sampling.top_p)
        kept = [word for word in kept if word in order[:share]]
    total = sum(p[word] for word in kept)
    return [p[word] / total if word in kept else 0.0 for word in range(len(p))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 11, 12, 50])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.999, 1.0])
def test_the_restricted_distribution_is_brute_force(temperature: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(temperature, top_k, top_p)
    for seed in range(5):
        log_prob = log_probabilities(seed)
        before = log_prob.clone()
        restricted = restricted_log_prob(log_prob, sampling)
        assert torch.equal(log_prob, before)
        assert restricted.exp().tolist() == pytest.approx(brute_force(log_prob.tolist(), sampling), abs=1e-12)
        assert float(restricted.exp().sum()) == pytest.approx(1.0, rel=1e-12)


def test_nothing_is_left_out_unless_asked() -> None:
    """However improbable: a top_p of 1 is all words."""
    log_prob = torch.log_softmax(torch.tensor([0.0, -1.0, -45.0, -100.0], dtype=torch.float64), -1)
    restricted = restricted_log_prob(log_prob, Sampling())
    torch.testing.assert_close(restricted, log_prob)
    even = torch.full((1000,), -math.log(1000), dtype=torch.float64)
    torch.testing.assert_close(restricted_log_prob(even, Sampling()), even)


def test_the_temperature_is_of_the_mixture_not_of_its_components() -> None:
    model = small_model(spread=2.0)
    hidden = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    head = model.head
    context, prior_logits = head.components(hidden)
    of_components = torch.softmax((context @ head.weight.T + head.bias) / 0.5, -1)
    other = (torch.softmax(prior_logits, -1).unsqueeze(-1) * of_components).sum(0).detach()
    ours = restricted_log_prob(head.log_prob(hidden), Sampling(0.5)).exp()
    mixture = head.log_prob(hidden).exp()
    torch.testing.assert_close(ours, mixture**2 / (mixture**2).sum())
    assert (ours - other).abs().max() > 0.01


def next_word(model: LanguageModel, prompt: list[int]) -> Tensor:
    """Probabilities of the word after ``prompt``, in one pass over it."""
    with torch.no_grad():
        output = model.backbone(torch.tensor(prompt).unsqueeze(1), model.initial_state(1))
        return model.head.log_prob(output.hidden[-1, 0]).exp()


def assert_frequencies(counts: list[int], probabilities: list[float]) -> None:
    """Chi-square. Under the distribution itself a statistic beyond the bound (5 sigmas of Wilson and Hilferty's normal
    approximation) has a probability of 3e-7; the seeds are fixed."""
    draws = sum(counts)
    assert all(count == 0 for count, p in zip(counts, probabilities, strict=True) if p == 0)
    # words with few expected draws are taken together
    small = [(c, p) for c, p in zip(counts, probabilities, strict=True) if 0 < p * draws < 10]
    cells = [(c, p) for c, p in zip(counts, probabilities, strict=True) if p * draws >= 10]
    if sum(p for _, p in small) * draws >= 10:
        cells.append((sum(c for c, _ in small), sum(p for _, p in small)))
    degrees = len(cells) - 1
    assert degrees >= 3
    statistic = sum((count - p * draws) ** 2 / (p * draws) for count, p in cells)
    spread = 2 / (9 * degrees)
    assert statistic < degrees * (1 - spread + 5 * math.sqrt(spread)) ** 3


SAMPLINGS = [Sampling(), Sampling(temperature=0.5, top_p=0.9), Sampling(temperature=2.0, top_k=6)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_frequencies_are_the_probabilities(sampling: Sampling) -> None:
    model = small_model(spread=1.3).eval()
    probabilities = brute_force(next_word(model, PROMPT).log().tolist(), sampling)
    assert max(probabilities) > 1.5 / 17  # not near even, which is what the original's mistake gave
    counts = [0] * 17
    for seed in range(1200):
        counts[next(generate(model, PROMPT, 1, sampling=sampling, seed=seed))] += 1
    assert_frequencies(counts, probabilities)


def test_frequencies_of_the_second_word() -> None:
    """After each first word: the state is carried, the drawn word is read, and places draw independently."""
    model = small_model(spread=1.3).eval()
    pairs = [tuple(generate(model, PROMPT, 2, seed=seed)) for seed in range(1200)]
    first = max(range(17), key=lambda word: sum(pair[0] == word for pair in pairs))
    counts = [sum(pair == (first, word) for pair in pairs) for word in range(17)]
    assert sum(counts) > 150
    assert_frequencies(counts, next_word(model, [*PROMPT, first]).tolist())


def test_the_chi_square_test_refuses_a_distribution_that_is_a_little_off() -> None:
    model = small_model(spread=1.3).eval()
    right = next_word(model, PROMPT)
    counts = torch.bincount(
        torch.multinomial(right, 1200, replacement=True, generator=torch.Generator().manual_seed(0)), minlength=17
    ).tolist()
    assert_frequencies(counts, right.tolist())
    flatter = right**0.7 / (right**0.7).sum()
    for wrong in (flatter, torch.softmax(right, -1), right.roll(1)):
        with pytest.raises(AssertionError):
            assert_frequencies(counts, wrong.tolist())


def test_temperature_zero_is_the_most_probable_word() -> None:
    model, text = small_model(spread=1.5).eval(), list(PROMPT)
    for _ in range(12):
        text.append(int(next_word(model, text).argmax()))
    for seed in (0, 1):
        assert list(generate(model, PROMPT, 12, sampling=Sampling(temperature=0), seed=seed)) == text[3:]
    assert list(generate(model, PROMPT, 12, sampling=Sampling(top_k=1))) == text[3:]
    assert list(generate(model, PROMPT, 12, sampling=Sampling(top_p=1e-9))) == text[3:]


def test_the_same_seed_is_the_same_text() -> None:
    model = small_model(spread=0.9)
    first = list(generate(model, PROMPT, 30, seed=4))
    torch.rand(5)
    assert list(generate(model, PROMPT, 30, seed=4)) == first
    assert list(generate(model, PROMPT, 10, seed=4)) == first[:10]  # a draw depends on its place, not on the length
    assert list(generate(model, PROMPT, 30, seed=5)) != first
    assert list(itertools.islice(generate(model, PROMPT, 10**9, seed=4), 10)) == first[:10]  # one by one


@pytest.mark.parametrize("training", [True, False])
def test_dropouts_are_off_and_the_mode_comes_back(training: bool) -> None:
    expected = list(generate(small_model(spread=0.9), PROMPT, 20, seed=4))
    model = small_model(spread=0.9, dropout=0.4).train(training)
    words = generate(model, PROMPT, 20, seed=4)
    first = next(words)
    assert all(module.training == training for module in model.modules()), "between two words"
    assert [first, *words] == expected
    assert all(module.training == training for module in model.modules())


def test_banned_words_are_never_drawn() -> None:
    model = small_model(spread=0.9)
    free = list(generate(model, PROMPT, 300, seed=1))
    banned = sorted(set(free))[:5]
    drawn = list(generate(model, PROMPT, 300, seed=1, banned=banned))
    assert not set(drawn) & set(banned)
    assert len(set(drawn)) > 5
    greedy = Sampling(temperature=0)
    [best] = generate(model, PROMPT, 1, sampling=greedy)
    [second] = generate(model, PROMPT, 1, sampling=greedy, banned=[best])
    assert second == int(next_word(model, PROMPT).argsort(descending=True)[1])


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-0.1), r"temperature: expected 0 or a number from 0\.001 on, got -0\.1"),
        (Sampling(top_k=-1), r"top-k: expected 0 \(all words\) or more, got -1"),
        (Sampling(top_p=0.0), r"top-p: expected a share above 0, at most 1, got 0\.0"),
        (Sampling(top_p=1.1), r"top-p: expected a share above 0, at most 1, got 1\.1"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(sampling: Sampling, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        generate(small_model(), PROMPT, 1, sampling=sampling)
    assert caught.value.exit_code == 2


def test_a_prompt_is_needed() -> None:
    with pytest.raises(UserError, match="prompt of at least one word"):
        generate(small_model(), [], 1)


def test_text() -> None:
    words = ("<eos>", "<unk>", *(f"w{number}" for number in range(2, 17)))
    vocabulary, model = Vocabulary(words), small_model(spread=0.3)
    numbers = list(generate(model, [0], 400, seed=2))
    text = generate_text(model, vocabulary, "", 400, seed=2)
    assert 0 in numbers
    assert 1 in numbers
    assert text.replace("\n", " <eos> ").split() == [words[number] for number in numbers]
    assert " \n" not in text
    assert "\n " not in text
    told = Telling()
    prompted = generate_text(model, vocabulary, "W5, never-seen", 20, seed=2, display=told)
    assert told.messages == ["not in the vocabulary, read as <unk>: ,, never-seen"]
    assert prompted.replace("\n", " <eos> ").split() == [words[n] for n in generate(model, [0, 5, 1], 20, seed=2)]
    assert "<unk>" not in generate_text(model, vocabulary, "", 400, seed=2, allow_unknown=False)
