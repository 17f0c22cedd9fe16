"""What the page says: of every head what it has, words escaped, figures as they are."""

import re

import pytest
import torch

from highrank.explore import Explorer, markup
from highrank.explore.explorer import Change
from tests.explore.conftest import MakeExplorer


def shown(explorer: Explorer, context: str, *, temperature: float = 1.0) -> str:
    view = explorer.predict("tab", context, temperature=temperature)
    return markup.view_html(view, explorer.vocabulary, explorer.model.head, temperature)


@pytest.mark.parametrize(
    ("head", "said", "cards"),
    [
        ("softmax", "one softmax: there are no components to show", 0),
        ("mixture-of-contexts", "no context has words of its own", 0),
        ("mixture-of-softmaxes", "each component has a softmax of its own", 3),
    ],
)
def test_every_head_says_what_it_has(make_explorer: MakeExplorer, head: str, said: str, cards: int) -> None:
    text = shown(make_explorer(f"model.head={head}"), "and god said")
    assert said in text
    assert text.count("class='hr-card'") == cards
    assert text.count("context 1</th>") == (head == "mixture-of-contexts")
    assert ("component 1:" in text) == (head == "mixture-of-softmaxes")


def test_bars_are_as_long_as_the_probabilities(explorer: Explorer) -> None:
    view = explorer.predict("tab", "and god said", top=4)
    table = markup.view_html(view, explorer.vocabulary, explorer.model.head, 1.0).split("</table>")[0]
    rows = table.split("<tr>")[2:]
    probabilities = view.trained.log_prob.exp()
    widths = [sum(map(float, re.findall(r"width:([\d.]+)%", row))) for row in rows]
    assert widths == pytest.approx((100 * probabilities / probabilities[0]).tolist(), abs=0.02)
    first = [float(width) for width in re.findall(r"width:([\d.]+)%", rows[0])]
    assert first == pytest.approx((100 * view.trained.word_posterior[0]).tolist(), abs=0.01)


def test_what_is_typed_is_escaped(explorer: Explorer) -> None:
    typed = "<img src=x onerror=alert(1)> and 'quoted' \"words\" &amp;"
    text = shown(explorer, typed)
    assert "<img" not in text
    assert "&lt;img" in text
    adapted = explorer.adapt("escaped", typed)
    explorer.restore("escaped")
    assert "<img" not in markup.adapted_html(adapted)
    assert markup.message_html("<b>").count("<b>") == 0


def test_a_word_of_the_vocabulary_is_not_called_unknown(explorer: Explorer) -> None:
    assert "Not in the vocabulary" not in shown(explorer, "and god")
    assert "Not in the vocabulary, so read as &lt;unk&gt;: “xyzzy”." in shown(explorer, "and xyzzy god")


def test_temperature_is_said(explorer: Explorer) -> None:
    assert "at temperature 0.7" in shown(explorer, "and", temperature=0.7)
    assert "at temperature" not in shown(explorer, "and")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.1, 0.2, "× 2.00"), (0.2, 0.1, "÷ 2.00"), (1e-5, 0.1, "× 10,000"), (0.0, 0.1, "new"), (0.1, 0.0, "gone")],
)
def test_changes(explorer: Explorer, before: float, after: float, said: str) -> None:
    view = explorer.predict("tab", "and")._replace(changes=[Change(0, before, after)])
    assert f"{said}</td>" in markup.view_html(view, explorer.vocabulary, explorer.model.head, 1.0)


def test_the_figures_of_an_adaptation(explorer: Explorer) -> None:
    adapted = explorer.adapt("figures", "and god said let there be light")._replace(
        before=torch.full((7,), 2.0), learning=torch.tensor([2.0, 2, 1, 1, 1, 1, 1.3])
    )
    explorer.restore("figures")
    text = markup.adapted_html(adapted)
    assert "data-figure='before'>7.4<" in text
    assert "data-figure='learning'>3.8 (-49%)<" in text
    assert text.count("class='hr-gain'") == 5 + 1  # the last five words, and the legend
