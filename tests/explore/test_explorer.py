"""What the page is told: the model's own predictions, adaptations that are dynamic evaluation, sessions apart."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from highrank.errors import UserError
from highrank.evaluate import dynamic_evaluate, evaluate, gradient_statistics
from highrank.explore import Explorer
from highrank.explore import explorer as module
from highrank.progress import SILENT
from highrank.runs import RunFolder
from tests.explore.conftest import MakeExplorer, corpus_at

TEXT = "and god said let there be light\nand there was light and god saw the light that it was good\n" * 3
CONTEXT = "and god said"


def test_the_prediction_is_that_of_the_model(explorer: Explorer) -> None:
    view = explorer.predict("a", CONTEXT, top=5)
    tokens = explorer.vocabulary.encode(["<eos>", *CONTEXT.split()])
    with torch.no_grad():
        hidden = explorer.model.backbone(torch.tensor(tokens).unsqueeze(1), explorer.model.initial_state(1)).hidden
    log_prob = explorer.model.head.log_prob(hidden[-1, 0])
    assert view.trained.words.tolist() == log_prob.topk(5).indices.tolist()
    torch.testing.assert_close(view.trained.full, log_prob)
    assert view.adapted is None
    assert view.changes == []


def test_adapting_is_dynamic_evaluation(explorer: Explorer, small_text: Path) -> None:
    """The losses are those of ``highrank evaluate`` and ``highrank dynamic-eval`` on the same words."""
    adapted = explorer.adapt("losses", TEXT)
    tokens = np.asarray(adapted.reading.tokens, dtype=np.int32)
    statistics = gradient_statistics(explorer.model, corpus_at(small_text).tokens["train"], batch=10)
    assert adapted.before.mean().item() == pytest.approx(evaluate(explorer.model, tokens).loss_nats, rel=1e-5)
    dynamic = dynamic_evaluate(explorer.model, tokens, statistics, explorer.settings)
    assert adapted.learning.mean().item() == pytest.approx(dynamic.loss_nats, rel=1e-5)
    assert adapted.perplexities == pytest.approx((math.exp(adapted.before.mean()), dynamic.perplexity), rel=1e-4)
    assert len(adapted.before) == len(adapted.learning) == len(tokens) - 1
    assert adapted.perplexities[1] < adapted.perplexities[0]
    assert "all of the training text" in adapted.statistics


def test_adapting_changes_the_prediction_and_going_back_restores_it(explorer: Explorer) -> None:
    before = explorer.predict("b", CONTEXT)
    weights = [parameter.clone() for parameter in explorer.model.parameters()]
    explorer.adapt("b", TEXT)
    view = explorer.predict("b", CONTEXT)
    assert view.adapted is not None
    torch.testing.assert_close(view.trained, before.trained, rtol=0, atol=0)
    assert view.trained.full is not None
    assert view.adapted.full is not None
    difference = (view.adapted.full.exp() - view.trained.full.exp()).abs()
    assert [change.word for change in view.changes] == difference.topk(module.CHANGES).indices.tolist()
    for change in view.changes:
        assert abs(change.after - change.before) == pytest.approx(float(difference[change.word]), rel=1e-4)
        assert change.after == pytest.approx(float(view.adapted.full[change.word].exp()))
    for parameter, trained in zip(explorer.model.parameters(), weights, strict=True):
        assert torch.equal(parameter, trained)
    explorer.restore("b")
    after = explorer.predict("b", CONTEXT)
    assert after.adapted is None
    torch.testing.assert_close(after.trained, before.trained, rtol=0, atol=0)


def test_sessions_do_not_see_each_other(explorer: Explorer) -> None:
    explorer.adapt("c", TEXT)
    assert explorer.predict("d", CONTEXT).adapted is None
    one = explorer.predict("c", CONTEXT).adapted
    explorer.adapt("d", "the sons of noah were these " * 5)
    again = explorer.predict("c", CONTEXT).adapted
    other = explorer.predict("d", CONTEXT).adapted
    assert one is not None
    assert other is not None
    torch.testing.assert_close(again, one, rtol=0, atol=0)
    assert not torch.equal(other.log_prob, one.log_prob)


def test_adapting_again_starts_from_the_trained_weights(explorer: Explorer) -> None:
    first, second = (explorer.adapt("e", TEXT).learning for _ in range(2))
    assert torch.equal(first, second)


def test_few_sessions_keep_a_copy(explorer: Explorer) -> None:
    names = [f"tab {number}" for number in range(module.MOST_ADAPTED + 1)]
    for name in names[:-1]:
        explorer.adapt(name, "and god said")
    explorer.predict(names[0], CONTEXT)  # used again: now the second one is the oldest
    explorer.adapt(names[-1], "and god said")
    assert [name for name in names if explorer.adapted(name) is None] == [names[1]]


def test_a_part_of_a_large_text_estimates_all_of_it(explorer: Explorer, trained: Path, small_text: Path) -> None:
    partial = Explorer(RunFolder.open(trained), lambda: corpus_at(small_text), statistics_tokens=1500)
    tokens = corpus_at(small_text).tokens["train"]
    found = partial._statistics_for(SILENT)
    part = gradient_statistics(partial.model, tokens[:1500], batch=10)
    for name, square in found.values.squares.items():
        torch.testing.assert_close(square, part.squares[name] * (len(tokens) / 1500))
    assert f"first 1,500 of {len(tokens):,} words" in found.said


def test_statistics_of_the_run_are_used(
    make_explorer: MakeExplorer, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from highrank.evaluate import dynamic_evaluate_run

    made = make_explorer()
    dynamic_evaluate_run(made.run, corpus_at(small_text), ("valid",), made.settings)
    monkeypatch.setattr(module, "gradient_statistics", lambda *_, **__: pytest.fail("they are in the run"))
    assert "kept in the run" in made.adapt("a", TEXT).statistics


def test_nothing_is_written_into_the_run(make_explorer: MakeExplorer) -> None:
    made = make_explorer()
    before = sorted((path, path.stat().st_mtime_ns) for path in made.run.path.rglob("*"))
    made.adapt("a", TEXT)
    assert sorted((path, path.stat().st_mtime_ns) for path in made.run.path.rglob("*")) == before


@pytest.mark.parametrize("head", ["softmax", "mixture-of-contexts"])
def test_every_head_can_be_explored(make_explorer: MakeExplorer, head: str) -> None:
    made = make_explorer(f"model.head={head}")
    made.adapt("a", TEXT)
    view = made.predict("a", CONTEXT)
    assert view.trained.prior.tolist() == [1.0]
    assert (view.trained.context_weights is None) == (head == "softmax")
    assert view.adapted is not None


@pytest.mark.parametrize("text", ["", "  \n \n"])
def test_a_text_without_words_is_refused(explorer: Explorer, text: str) -> None:
    with pytest.raises(UserError, match="no word to learn from"):
        explorer.adapt("f", text)
    assert explorer.adapted("f") is None


def test_a_lost_loss_is_said_and_leaves_the_trained_weights(make_explorer: MakeExplorer) -> None:
    made = make_explorer("dynamic.lr=1e38")
    with pytest.raises(UserError, match=r"dynamic\.lr"):
        made.adapt("a", TEXT)
    assert made.adapted("a") is None
    assert all(parameter.isfinite().all() for parameter in made.model.parameters())


def test_a_missing_training_text_is_said(trained: Path) -> None:
    def missing() -> None:
        raise UserError("the corpus folder x does not exist")

    made = Explorer(RunFolder.open(trained), missing)  # type: ignore[arg-type]
    assert made.predict("a", CONTEXT).trained.words.numel() == 10
    with pytest.raises(UserError, match="does not exist"):
        made.adapt("a", TEXT)


def test_long_work_ends_when_the_page_is_closed(make_explorer: MakeExplorer) -> None:
    made = make_explorer()
    made.close()
    with pytest.raises(UserError, match="closed"):
        made.adapt("a", TEXT)


def test_a_long_context_keeps_its_end(explorer: Explorer) -> None:
    view = explorer.predict("g", "light " * module.LONGEST_CONTEXT + CONTEXT)
    assert view.reading.dropped == 3
    assert [word.read for word in view.reading.words[-3:]] == CONTEXT.split()
