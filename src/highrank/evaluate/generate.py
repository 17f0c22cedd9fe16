"""Text from a model: samples of the true mixture distribution."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from highrank.data import Vocabulary
from highrank.data.typed import read_as, read_text
from highrank.data.vocabulary import END_OF_LINE, UNKNOWN
from highrank.errors import UserError, one_line
from highrank.models import LanguageModel, detached, evaluating
from highrank.progress import SILENT, Display
from highrank.random import torch_generator

__all__ = ["Sampling", "generate", "generate_text", "restricted_log_prob"]


class Sampling(NamedTuple):
    """temperature divides the log-probabilities of the mixture (not of each component); 0 takes the most probable word.
    top_k keeps the k most probable words (0: all); top_p the fewest that hold a share p of the probability (1: all)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


PLAIN = Sampling()
LOWEST_TEMPERATURE = 0.001  # below, log-probabilities divided by it overflow


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    words: int,
    *,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    banned: Sequence[int] = (),
) -> Iterator[int]:
    """``words`` word numbers that follow ``prompt`` (at least one number), one by one.

    Each draw depends on (seed, its place) alone. ``banned`` words are never drawn (``<unk>``, say).
    """
    if not prompt:
        raise UserError("generate: expected a prompt of at least one word")
    _check(sampling)
    return _drawn(model, prompt, words, sampling, seed, banned)


@torch.no_grad()
def _drawn(
    model: LanguageModel, prompt: Sequence[int], words: int, sampling: Sampling, seed: int, banned: Sequence[int]
) -> Iterator[int]:
    device = next(model.parameters()).device
    tokens = torch.tensor(prompt, device=device).unsqueeze(1)
    state = model.initial_state(1)
    for place in range(words):
        with evaluating(model):  # not while whoever asked for the word has it
            output = model.backbone(tokens, state)
            log_prob_V = model.head.log_prob(output.hidden[-1, 0])
        state = detached(output.state)
        log_prob_V[list(banned)] = -torch.inf
        drawn = _draw(log_prob_V, sampling, torch_generator("cpu", seed, "generate", place))
        tokens = torch.full_like(tokens[:1], drawn)
        yield drawn


def generate_text(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: str,
    words: int,
    *,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    allow_unknown: bool = True,
    display: Display = SILENT,
) -> str:
    """``words`` words that follow ``prompt``, which begins a line, as text: ``<eos>`` becomes a line's end.

    The prompt is read as ``data.typed.read_text`` reads; ``display`` is told what of it is not in the vocabulary.
    """
    reading = read_text(prompt, vocabulary)
    if reading.unknown:
        display.message(one_line(f"not in the vocabulary, {read_as(vocabulary)}: {', '.join(reading.unknown)}"))
    unknown = vocabulary.index.get(UNKNOWN)
    banned = [] if allow_unknown or unknown is None else [unknown]
    numbers = generate(model, reading.tokens, words, sampling=sampling, seed=seed, banned=banned)
    drawn = []
    for number in numbers:
        drawn.append(vocabulary.words[number])
        display.progress("generating", len(drawn), words, unit="words")
    return " ".join("\n" if word == END_OF_LINE else word for word in drawn).replace("\n ", "\n").replace(" \n", "\n")


def restricted_log_prob(log_prob_V: Tensor, sampling: Sampling) -> Tensor:
    """The normalised distribution that is sampled from: (V), -inf where a word is left out."""
    scaled_V = torch.log_softmax(log_prob_V / sampling.temperature, dim=-1)
    sorted_V, order_V = scaled_V.sort(descending=True, stable=True)
    # A word is kept while the words before it hold less than top_p: the most probable one always is.
    before_V = sorted_V.exp().cumsum(-1) - sorted_V.exp()
    # (With 1 nothing is left out, although rounded sums reach it early.)
    left_out_V = before_V >= (sampling.top_p if sampling.top_p < 1 else torch.inf)
    left_out_V[0] = False
    if sampling.top_k:
        left_out_V[sampling.top_k :] = True
    scaled_V[order_V[left_out_V]] = -torch.inf
    return torch.log_softmax(scaled_V, dim=-1)


def _draw(log_prob_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(log_prob_V.argmax())
    probability_V = restricted_log_prob(log_prob_V.double().cpu(), sampling).exp()
    return int(torch.multinomial(probability_V, 1, generator=generator))


def _check(sampling: Sampling) -> None:
    if sampling.temperature != 0 and not LOWEST_TEMPERATURE <= sampling.temperature < math.inf:
        raise UserError(
            f"temperature: expected 0 or a number from {LOWEST_TEMPERATURE} on, got {sampling.temperature}", exit_code=2
        )
    if sampling.top_k < 0:
        raise UserError(f"top-k: expected 0 (all words) or more, got {sampling.top_k}", exit_code=2)
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top-p: expected a share above 0, at most 1, got {sampling.top_p}", exit_code=2)
