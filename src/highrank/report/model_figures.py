"""What was measured of trained models: the spectrum of their log-probabilities, the health of their components."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from highrank.report.figure import Figure, by_run, rows_of
from highrank.runs.measured import Components, EntropyBand, GainBand, RankFigures

__all__ = ["component_figures", "spectrum_figures"]

SHOWN_VALUES = 400  # of a spectrum: more than a line of that width can show
LEAST_SHOWN = 1e-17  # of the largest singular value: below what float64 can tell from nothing


def spectrum_figures(ranks: Mapping[str, RankFigures]) -> list[Figure]:
    """The singular values of runs named by their labels, each divided by the largest, on two logarithmic axes."""
    if not ranks:
        return []
    labels = list(ranks)
    rows: list[dict[str, Any]] = [
        {"run": label, "index": index + 1, "singular value": value, "relative": value / found.singular_values[0]}
        for label, found in ranks.items()
        for index, value in enumerate(found.singular_values)
    ]
    shown = [
        rows[start + index - 1]
        for start, found in zip(_starts(ranks), ranks.values(), strict=True)
        for index in _shown_indices(len(found.singular_values))
        if rows[start + index - 1]["relative"] > LEAST_SHOWN
    ]
    longest = max(len(found.singular_values) for found in ranks.values())
    x = alt.X(
        "index:Q",
        title="number of the singular value",
        scale=alt.Scale(type="log", domain=[1, longest], nice=False),
        axis=alt.Axis(format="~s", tickCount=5),
    )
    y = alt.Y(
        "relative:Q",
        title="singular value / the largest",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format=".0e", tickCount=6),
    )
    runs = by_run(labels)
    tooltip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("index:Q", format=",.0f"),
        alt.Tooltip("relative:Q", format=".2e"),
    ]
    line = (
        alt.Chart(rows_of(shown, "run", "index", "relative"))
        .mark_line(strokeWidth=2.25)
        .encode(x=x, y=y, color=runs["color"], strokeDash=runs["strokeDash"], tooltip=tooltip)
    )
    ends = [row for label, found in ranks.items() if (row := _at_rank(rows, label, found)) is not None]
    points = (
        alt.Chart(rows_of(ends, "run", "index", "relative", "rank"))
        .mark_point(size=70, filled=True, opacity=1)
        .encode(x=x, y=y, color=runs["color"], shape=runs["shape"], tooltip=["run:N", alt.Tooltip("rank:N")])
    )
    bounds = sorted({found.context_features + 2 for found in ranks.values()})
    named = [{"index": bound, "label": f"D + 2 = {bound}", "line": 6 + 13 * n} for n, bound in enumerate(bounds)]
    data = alt.Chart(rows_of(named, "index", "label", "line"))
    rule = data.mark_rule(strokeDash=[3, 3]).encode(x=x)
    text = data.mark_text(align="left", dx=4, baseline="middle", fontSize=10).encode(
        x=x, y=alt.Y("line:Q", scale=None, axis=None), text="label:N"
    )
    said = "; ".join(f"{label}: rank {found.numerical_rank:,}" for label, found in ranks.items())
    return [
        Figure(
            "spectrum",
            "spectrum",
            "Singular values of the log-probability matrix",
            f"singular values, divided by the largest, by their number, both on logarithmic axes; {said}; a rule "
            "marks the bound D + 2 of one softmax",
            rows,
            alt.layer(rule, text, line, points),
            height=340,
        )
    ]


def component_figures(components: Mapping[str, Components]) -> list[Figure]:
    """Use and distance of the components of each run, entropy and gain of all runs in one plot."""
    figures: list[Figure] = []
    for label, found in components.items():
        figures += [_use(label, found), _divergence(label, found)]
    entropy = [
        row
        for label, found in components.items()
        for row in _band_rows(label, found.prior_entropy.by_line_position, "prior entropy")
    ]
    if entropy:
        figures.append(
            _by_band(
                "prior-entropy-by-line-position",
                "Prior entropy by position in the line",
                entropy,
                list(components),
                "words of the line before the target",
                "prior entropy",
                "prior entropy, nats",
            )
        )
    controls = {label: found.gain.control for label, found in components.items() if found.gain.control is not None}
    heads = sorted({(control.head or "of another head").replace("-", " ") for control in controls.values()})
    gains = {
        "gain-by-frequency": (
            "Gain of the mixture over its best single component, by word frequency",
            {label: found.gain.best_component for label, found in components.items()},
        ),
        "gain-over-control-by-frequency": (
            f"Gain of the mixture over its control ({' or '.join(heads)}), by word frequency",
            controls,
        ),
    }
    for name, (title, of_runs) in gains.items():
        rows = [row for label, gain in of_runs.items() for row in _band_rows(label, gain.by_target_frequency, "gain")]
        if rows:
            x_title = "occurrences of the target in the training text"
            figures.append(_by_band(name, title, rows, list(of_runs), x_title, "gain", "gain, nats a token"))
    return figures


def _starts(ranks: Mapping[str, RankFigures]) -> list[int]:
    starts, start = [], 0
    for found in ranks.values():
        starts.append(start)
        start += len(found.singular_values)
    return starts


def _shown_indices(count: int) -> list[int]:
    """From 1, evenly spaced on a logarithmic axis; the last one too."""
    last = max(1, count)
    spaced = {round(last ** (step / SHOWN_VALUES)) for step in range(SHOWN_VALUES + 1)}
    return [index for index in sorted(spaced) if index <= count]


def _at_rank(rows: Sequence[dict[str, Any]], label: str, found: RankFigures) -> dict[str, Any] | None:
    """The last singular value that counts."""
    if not 1 <= found.numerical_rank <= len(found.singular_values):
        return None
    return {
        "run": label,
        "index": found.numerical_rank,
        "relative": max(found.singular_values[found.numerical_rank - 1] / found.singular_values[0], LEAST_SHOWN),
        "rank": f"{found.numerical_rank:,}",
    }


def _use(label: str, found: Components) -> Figure:
    rows: list[dict[str, Any]] = [
        {
            "component": one.component + 1,
            "mean prior": round(one.mean_prior, 6),
            "mean posterior": round(one.mean_posterior, 6),
        }
        for one in found.components
    ]
    x = alt.X("component:O", title="component", axis=alt.Axis(labelAngle=0))
    shares = [
        {"component": row["component"], "share": row[what], "what": what}
        for row in rows
        for what in ("mean posterior", "mean prior")
    ]
    data = alt.Chart(rows_of(shares, "component", "share", "what"))
    y = alt.Y("share:Q", title="share of the tokens", scale=alt.Scale(domainMin=0), axis=alt.Axis(format="%"))
    color = alt.Color(
        "what:N",
        scale=alt.Scale(domain=["mean posterior", "mean prior"]),
        legend=alt.Legend(orient="top", title=None, symbolType="diamond"),
    )
    tooltip = ["component:O", "what:N", alt.Tooltip("share:Q", format=".3f")]
    bars = (
        data.transform_filter("datum.what == 'mean posterior'")
        .mark_bar(opacity=0.75, size=18)
        .encode(x=x, y=y, color=color, tooltip=tooltip)
    )
    ticks = (
        data.transform_filter("datum.what == 'mean prior'")
        .mark_point(size=80, shape="diamond", filled=True, opacity=1)
        .encode(x=x, y=y, color=color, tooltip=tooltip)
    )
    even = (
        alt.Chart({"values": [{"even": 1 / found.num_components}]})
        .mark_rule(strokeDash=[3, 3])
        .encode(y=alt.Y("even:Q"), tooltip=[alt.Tooltip("even:Q", format=".3f")])
    )
    return Figure(
        f"use-{label}",
        "use",
        f"{label}: use of the components",
        f"mean posterior (bars) and mean prior (diamonds) of each component of {label}; a rule marks an even share",
        rows,
        alt.layer(bars, ticks, even),
        height=220,
        paper_width=300,
    )


def _divergence(label: str, found: Components) -> Figure:
    rows: list[dict[str, Any]] = [
        {"component": i + 1, "other": j + 1, "divergence": round(value, 6)}
        for i, row in enumerate(found.divergence.mean_nats)
        for j, value in enumerate(row)
    ]
    data = alt.Chart(rows_of([{**row, "what": "divergence"} for row in rows], *rows[0], "what"))
    axis = alt.Axis(labelAngle=0, grid=False, domain=False, ticks=False)
    x, y = alt.X("component:O", title="component", axis=axis), alt.Y("other:O", title="component", axis=axis)
    squares = data.mark_rect().encode(
        x=x,
        y=y,
        color=alt.Color("what:N", legend=None),
        opacity=alt.Opacity("divergence:Q", scale=alt.Scale(domain=[0, 0.6931], range=[0.06, 0.75]), legend=None),
        tooltip=["component:O", "other:O", alt.Tooltip("divergence:Q", format=".3f")],
    )
    layers: list[Any] = [squares]
    if found.num_components <= 8:
        layers.append(data.mark_text(fontSize=11).encode(x=x, y=y, text=alt.Text("divergence:Q", format=".2f")))
    return Figure(
        f"divergence-{label}",
        "divergence",
        f"{label}: distance of the components from each other",
        f"mean Jensen-Shannon divergence between the predictions of each two components of {label}, in nats: 0 the "
        "same, 0.69 no word in common",
        rows,
        alt.layer(*layers),
        height=220,
        paper_width=260,
    )


def _band_rows(label: str, bands: Sequence[EntropyBand | GainBand], what: str) -> list[dict[str, Any]]:
    return [
        {
            "run": label,
            "band": _band_name(band.start, band.end),
            "order": band.start,
            "tokens": band.tokens,
            what: round(band.mean_nats if isinstance(band, EntropyBand) else band.gain_nats, 6),
        }
        for band in bands
    ]


def _band_name(start: float, end: float | None) -> str:
    if end is None:
        return f"{start:,.0f} on"
    return f"{start:,.0f}" if start == end else f"{start:,.0f} to {end:,.0f}"


def _by_band(
    name: str, title: str, rows: list[dict[str, Any]], labels: list[str], x_title: str, what: str, y_title: str
) -> Figure:
    runs = by_run(labels)
    order = [band for _, band in sorted({(row["order"], row["band"]) for row in rows})]
    data = alt.Chart(rows_of(rows, "run", "band", "tokens", what))
    x = alt.X("band:O", title=x_title, sort=order, axis=alt.Axis(labelAngle=-30))
    y = alt.Y(f"{what}:Q", title=y_title)
    line = data.mark_line(strokeWidth=2.25).encode(x=x, y=y, color=runs["color"], strokeDash=runs["strokeDash"])
    points = data.mark_point(size=60, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=runs["color"],
        shape=runs["shape"],
        tooltip=["run:N", "band:O", alt.Tooltip("tokens:Q", format=","), alt.Tooltip(f"{what}:Q", format=".3f")],
    )
    return Figure(
        name, "bands", title, f"{y_title} by {x_title}: {', '.join(labels)}", rows, alt.layer(line, points), height=240
    )
