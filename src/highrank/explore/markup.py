"""What the page shows, as HTML: tables that read without colours, and every word escaped."""

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from torch import Tensor

from highrank.data import Vocabulary
from highrank.data.typed import Reading
from highrank.data.vocabulary import END_OF_LINE, UNKNOWN
from highrank.evaluate import Prediction
from highrank.explore.explorer import Adapted, Change, Explorer, View
from highrank.heads import Head, MixtureOfContexts, MixtureOfSoftmaxes

__all__ = [
    "adapted_html",
    "header_html",
    "message_html",
    "view_html",
]

COLOURS = 10  # classes hr-c0 ... of the style sheet; beyond them colours come again, and numbers tell
OWN_WORDS = 5
FULL_COLOUR_NATS = 3.0  # a difference of surprisal that is shown in full colour


def header_html(explorer: Explorer) -> str:
    head = explorer.model.head
    return (
        f"<h1>highrank explore</h1><p class='hr-note'>{escape(str(explorer.run.path))}, stage "
        f"{escape(explorer.stage)}: {_kind(head)} over {len(explorer.vocabulary):,} words, "
        f"{explorer.model.num_parameters:,} parameters</p>"
    )


def message_html(text: str) -> str:
    return f"<p class='hr-message' role='status'>{escape(text)}</p>"


def view_html(view: View, vocabulary: Vocabulary, head: Head, temperature: float) -> str:
    """What the model reads, what comes next, and what is behind it."""
    return (
        _reading(view.reading)
        + _prediction(view, vocabulary, temperature)
        + _changes(view.changes, vocabulary)
        + _components(view, vocabulary, head)
    )


def _reading(reading: Reading) -> str:
    """The context as the model reads it."""
    chips = [_chip(END_OF_LINE, "", "a line begins")]
    for word in reading.words:
        if word.read is None:
            chips.append(_chip(word.typed, "hr-left-out", "left out"))
        elif word.read == UNKNOWN != word.typed:
            chips.append(_chip(f"{word.typed} → {UNKNOWN}", "hr-unknown", "not in the vocabulary"))
        else:
            chips.append(_chip(word.read, "", "the line ends" if word.read == END_OF_LINE else ""))
    said = []
    if reading.unknown:
        names = ", ".join(f"“{escape(word)}”" for word in reading.unknown[:8]) + (
            "…" if len(reading.unknown) > 8 else ""
        )
        left_out = any(word.read is None for word in reading.words)
        said.append(f"Not in the vocabulary, so {'left out' if left_out else f'read as {escape(UNKNOWN)}'}: {names}.")
    if reading.dropped:
        said.append(f"Only the last {len(reading.words):,} words are read.")
    note = f"<p class='hr-note hr-said'>{' '.join(said)}</p>" if said else ""
    return f"<p class='hr-reading'><span class='hr-label'>The model reads</span> {' '.join(chips)}</p>{note}"


def _prediction(view: View, vocabulary: Vocabulary, temperature: float) -> str:
    """The likeliest next words: one table, or the trained and the adapted one side by side on one scale."""
    both = [view.trained] if view.adapted is None else [view.trained, view.adapted]
    longest = max(float(prediction.log_prob[0].exp()) for prediction in both)
    titles = ["Next word"] if view.adapted is None else ["Next word, trained weights", "Next word, after adapting"]
    tables = [
        _prediction_table(title, prediction, vocabulary, longest)
        for title, prediction in zip(titles, both, strict=True)
    ]
    tempered = "" if temperature == 1 else f" at temperature {temperature:g}"
    mixed = view.trained.prior.numel() > 1
    colours = " Colours: the share of each component below." if mixed else ""
    note = f"<p class='hr-note'>Probabilities of the likeliest words{tempered}.{colours}</p>"
    return f"<div class='hr-side-by-side'>{''.join(tables)}</div>{note}"


def _components(view: View, vocabulary: Vocabulary, head: Head) -> str:
    """Weights and words of the components; or what there is instead."""
    now = view.adapted or view.trained
    if isinstance(head, MixtureOfSoftmaxes):
        before = view.trained.prior.tolist() if view.adapted is not None else None
        cards = [
            _component_card(k, float(now.prior[k]), None if before is None else before[k], now, vocabulary)
            for k in _by_weight(now.prior)
        ]
        note = (
            "The next word is a mixture: each component has a softmax of its own, and the context says how much weight "
            "each gets. The mixture's probability of a word is the sum of weight × the component's probability."
        )
        return _section("Components behind it", note, f"<div class='hr-cards'>{''.join(cards)}</div>")
    if now.context_weights is not None:
        weights = now.context_weights
        rows = [(f"context {k + 1}", float(weights[k]), k) for k in _by_weight(weights)]
        note = (
            "This head is a mixture of contexts: context vectors are averaged with these weights before one softmax. "
            "There is one distribution, so no context has words of its own."
        )
        return _section("Contexts behind it", note, _weights_table(rows))
    note = (
        "This head is one softmax: there are no components to show. Open a run with a mixture of softmaxes to see some."
    )
    return _section("Components behind it", note, "")


def _changes(changes: Sequence[Change], vocabulary: Vocabulary) -> str:
    """The words whose probability after the context the adaptation changed most."""
    if not changes:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{_word(vocabulary.words[change.word])}</th><td>{_percent(change.before)}</td>"
        f"<td>{_percent(change.after)}</td><td class='{'hr-up' if change.after > change.before else 'hr-down'}'>"
        f"{_factor(change.before, change.after)}</td></tr>"
        for change in changes
    )
    table = (
        "<table class='hr-table hr-changes'><thead><tr><th scope='col'>word</th><th scope='col'>trained</th>"
        f"<th scope='col'>adapted</th><th scope='col'>change</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return _section("What adapting changed most, after this context", "", table)


def adapted_html(adapted: Adapted) -> str:
    """Perplexity before and while learning, and the text coloured by what learning did to the surprise."""
    before, learning = adapted.perplexities
    unknown = sum(word.read == UNKNOWN != word.typed for word in adapted.reading.words)
    facts = f"{len(adapted.before):,} words" + (f", {unknown:,} of them read as {escape(UNKNOWN)}" if unknown else "")
    if adapted.reading.dropped:
        facts += f"; the {adapted.reading.dropped:,} words after them were not read"
    settings = adapted.settings
    table = (
        "<table class='hr-table hr-figures'><thead><tr><th scope='col'>perplexity of the text</th><th scope='col'></th>"
        f"</tr></thead><tbody><tr><th scope='row'>trained weights</th><td data-figure='before'>{before:,.1f}</td></tr>"
        f"<tr><th scope='row'>while learning from it</th><td data-figure='learning'>{learning:,.1f} "
        f"({100 * (learning / before - 1):+.0f}%)</td></tr></tbody></table>"
    )
    return (
        f"{table}<p class='hr-note'>{facts}. Each word is scored before the weights learn of it: the gain is "
        f"prediction, not memory.</p><p class='hr-passage'>{' '.join(_passage(adapted))}</p>"
        "<p class='hr-note'><span class='hr-gain' style='--hr-strength:70%'>blue</span> words surprised less than "
        "without learning, <span class='hr-loss' style='--hr-strength:70%'>orange</span> ones more; point at a word "
        "for its surprisal in nats.</p>"
        f"<p class='hr-note'>Segments of {settings.bptt} words, learning rate {settings.lr:g}, "
        f"decay {settings.lamb:g}; step sizes from {escape(adapted.statistics)}.</p>"
    )


def _passage(adapted: Adapted) -> Iterator[str]:
    read = [word for word in adapted.reading.words if word.read is not None]
    scored = read[len(read) - len(adapted.before) :]
    for word in read[: len(read) - len(adapted.before)]:
        yield _word(word.typed)
    for word, before, learning in zip(scored, adapted.before.tolist(), adapted.learning.tolist(), strict=True):
        gain = before - learning
        strength = min(100, round(100 * abs(gain) / FULL_COLOUR_NATS))
        title = f"{word.read}: {before:.2f} nats by the trained weights, {learning:.2f} while learning"
        yield (
            f"<span class='{'hr-gain' if gain > 0 else 'hr-loss'}' style='--hr-strength:{strength}%' "
            f"title='{escape(title)}'>{_word('¶' if word.read == END_OF_LINE else word.typed)}</span>"
        )


def _kind(head: Head) -> str:
    if isinstance(head, MixtureOfSoftmaxes):
        return f"a mixture of {head.num_components} softmaxes"
    if isinstance(head, MixtureOfContexts):
        return f"one softmax of a mixture of {head.num_components} contexts"
    return "one softmax"


def _prediction_table(title: str, prediction: Prediction, vocabulary: Vocabulary, longest: float) -> str:
    rows = []
    for place, word in enumerate(prediction.words.tolist()):
        p = float(prediction.log_prob[place].exp())
        shares = prediction.word_posterior[place].tolist()
        parts = "".join(
            f"<i class='{_colour(k)}' style='width:{100 * share * p / longest:.2f}%'></i>"
            for k, share in enumerate(shares)
        )
        said = "; ".join(f"component {k + 1}: {share:.0%}" for k, share in enumerate(shares)) if len(shares) > 1 else ""
        rows.append(
            f"<tr><th scope='row'>{_word(vocabulary.words[word])}</th><td>{_percent(p)}</td>"
            f"<td class='hr-bar-cell'><span class='hr-bar' title='{said}'>{parts}</span></td></tr>"
        )
    entropy = float(prediction.entropy)
    return (
        f"<div><h2>{title}</h2><table class='hr-table hr-next'><thead><tr><th scope='col'>word</th>"
        "<th scope='col'>probability</th><th scope='col'><span class='hr-hidden'>bar</span></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table><p class='hr-note'>Entropy {entropy:.2f} nats: as open as an even "
        f"choice between {_number(math.exp(entropy))} words.</p></div>"
    )


def _component_card(k: int, weight: float, before: float | None, now: Prediction, vocabulary: Vocabulary) -> str:
    words = now.component_words[k, :OWN_WORDS].tolist()
    probabilities = now.component_log_prob[k, :OWN_WORDS].exp().tolist()
    rows = "".join(
        f"<tr><th scope='row'>{_word(vocabulary.words[word])}</th><td>{_percent(p)}</td></tr>"
        for word, p in zip(words, probabilities, strict=True)
    )
    was = "" if before is None else f"<span class='hr-was'>{_percent(before)} →</span> "
    return (
        f"<div class='hr-card' data-component='{k + 1}'><h3><i class='hr-dot {_colour(k)}'></i>Component {k + 1}</h3>"
        f"<p class='hr-weight'>weight {was}<b>{_percent(weight)}</b></p>"
        f"<span class='hr-bar'><i class='{_colour(k)}' style='width:{100 * weight:.2f}%'></i></span>"
        f"<table class='hr-table'><tbody>{rows}</tbody></table></div>"
    )


def _weights_table(rows: Iterable[tuple[str, float, int]]) -> str:
    body = "".join(
        f"<tr><th scope='row'>{name}</th><td>{_percent(weight)}</td><td class='hr-bar-cell'>"
        f"<span class='hr-bar'><i class='{_colour(k)}' style='width:{100 * weight:.2f}%'></i></span></td></tr>"
        for name, weight, k in rows
    )
    return f"<table class='hr-table hr-next'><tbody>{body}</tbody></table>"


def _section(title: str, note: str, body: str) -> str:
    return f"<h2>{title}</h2>" + (f"<p class='hr-note'>{note}</p>" if note else "") + body


def _by_weight(weights: Tensor) -> list[int]:
    return [int(k) for k in weights.argsort(descending=True, stable=True)]


def _chip(text: str, kind: str, title: str) -> str:
    return f"<span class='hr-chip {kind}' title='{escape(title)}'>{_word(text)}</span>"


def _word(word: str) -> str:
    return escape(word)


def _colour(k: int) -> str:
    return f"hr-c{k % COLOURS}"


def _percent(p: float) -> str:
    if p >= 0.9995:
        return "100%"
    return f"{100 * p:#.3g}%" if p >= 1e-5 else f"{100 * p:.0e}%"


def _number(x: float) -> str:
    return f"{x:,.2f}" if x < 10 else f"{x:,.0f}"


def _factor(before: float, after: float) -> str:
    if after >= before:
        return f"× {_number(after / before)}" if before else "new"
    return f"÷ {_number(before / after)}" if after else "gone"
