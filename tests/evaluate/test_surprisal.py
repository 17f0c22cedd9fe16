"""The surprisal of every word: what evaluation takes the mean of, and how a typed text is told apart."""

import numpy as np
import pytest
import torch

from highrank.data import Vocabulary
from highrank.errors import UserError
from highrank.evaluate import evaluate, score_text, surprisal
from tests.parity import small_model
from tests.telling import Telling

WORDS = ("<eos>", "<unk>", *(f"w{number}" for number in range(2, 17)))
VOCABULARY = Vocabulary(WORDS)


def test_their_mean_is_the_evaluated_loss() -> None:
    model, tokens = small_model(), np.random.default_rng(1).integers(17, size=3000).astype(np.int32)
    found = surprisal(model, tokens)
    assert found.nats.shape == (2999,)
    assert float(found.nats.mean()) == pytest.approx(evaluate(model, tokens).loss_nats, rel=1e-12)


def test_each_is_the_log_probability_after_all_words_before_it() -> None:
    model, tokens = small_model().eval(), [0, 5, 3, 0, 7]
    found = surprisal(model, np.array(tokens, dtype=np.int32))
    with torch.no_grad():
        hidden = model.backbone(torch.tensor(tokens[:-1]).unsqueeze(1), model.initial_state(1)).hidden[:, 0]
        log_prob = model.head.log_prob(hidden)
        statistics = model.head.statistics(hidden, torch.tensor(tokens[1:]))
    torch.testing.assert_close(found.nats, -log_prob[range(4), tokens[1:]])
    torch.testing.assert_close(found.prior, statistics.prior)
    torch.testing.assert_close(found.posterior, statistics.posterior)


def test_a_text_has_places_lines_and_ends() -> None:
    model, told = small_model(), Telling()
    score = score_text(model, VOCABULARY, "w5 W3,\n\n  \nnew w7", display=told)
    assert [word[:4] for word in score.words] == [
        (1, 1, "w5", "w5"),
        (1, 2, "W3", "w3"),
        (1, 2, ",", None),
        (1, 3, "", "<eos>"),
        (4, 1, "new", "<unk>"),
        (4, 2, "w7", "w7"),
        (4, 3, "", "<eos>"),
    ]
    expected = surprisal(model, np.array([0, 5, 3, 0, 1, 7, 0], dtype=np.int32))
    assert [word.nats for word in score.words if word.read] == expected.nats.tolist() == score.nats
    assert score.words[2].nats is None
    torch.testing.assert_close(score.posterior, expected.posterior)
    assert told.shown == [("scoring", 6, 6, "tokens")]


def test_line_by_line_nothing_is_carried() -> None:
    model = small_model()
    together = score_text(model, VOCABULARY, "w5 w3\nw7 w9\n")
    apart = score_text(model, VOCABULARY, "w5 w3\nw7 w9\n", by_line=True)
    alone = [score_text(model, VOCABULARY, line).nats for line in ("w5 w3", "w7 w9")]
    assert apart.nats == [*alone[0], *alone[1]]
    assert apart.prior.shape == (6, 4)
    assert together.nats[:3] == apart.nats[:3]
    assert together.nats[3:] != apart.nats[3:]


def test_without_line_ends_the_first_word_is_not_predicted() -> None:
    vocabulary = Vocabulary(tuple(f"w{number}" for number in range(17)))
    model = small_model()
    score = score_text(model, vocabulary, "new w5 w3\nw7")
    expected = surprisal(model, np.array([5, 3, 7], dtype=np.int32)).nats.tolist()
    assert [word.nats for word in score.words] == [None, None, *expected]
    apart = score_text(model, vocabulary, "w5\nw3 w7", by_line=True)
    assert [word.nats is None for word in apart.words] == [True, True, False]


@pytest.mark.parametrize("text", ["", " \n\n", "new"])
def test_a_text_without_words(text: str) -> None:
    vocabulary = Vocabulary(tuple(f"w{number}" for number in range(17)))
    with pytest.raises(UserError, match="at least one word that the model can predict, got none"):
        score_text(small_model(), vocabulary, text)
