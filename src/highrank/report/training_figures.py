"""Loss and perplexity of runs in training: by epoch, by tokens and by time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from highrank.report.figure import AnyChart, Figure, by_run, rows_of, run_scale
from highrank.report.history import History

__all__ = ["training_figures"]

PLACES = {"epoch": "epoch", "tokens": "tokens trained on", "time": "time trained"}
MEASURES = {"perplexity": "perplexity", "loss": "loss, nats a token"}


def training_figures(histories: Mapping[str, History]) -> list[Figure]:
    """For runs named by their labels; none of them without records is shown, and none at all without any."""
    histories = {label: history for label, history in histories.items() if history.points}
    if not histories:
        return []
    longest_s = max(point.elapsed_s for history in histories.values() for point in history.points)
    unit, seconds = ("hours", 3600) if longest_s > 2 * 3600 else ("minutes", 60) if longest_s > 120 else ("seconds", 1)
    rows: list[dict[str, Any]] = [
        {
            "run": label,
            "stage": point.stage,
            "text": point.what,
            "epoch": round(point.epoch, 4),
            "tokens": None if point.tokens is None else round(point.tokens),
            unit: round(point.elapsed_s / seconds, 4),
            "loss": round(point.loss_nats, 5),
            "perplexity": float(f"{point.perplexity:.6g}"),
        }
        for label, history in histories.items()
        for point in history.points
    ]
    marks: list[dict[str, Any]] = [
        {
            "run": label,
            "what": mark.what,
            "epoch": mark.epoch,
            "tokens": mark.tokens,
            unit: mark.elapsed_s / seconds,
        }
        for label, history in histories.items()
        for mark in history.marks
    ]
    figures = []
    for measure, measured in MEASURES.items():
        for place, title in PLACES.items():
            field = unit if place == "time" else place
            rows_here = [row for row in rows if row[field] is not None]
            if not rows_here:
                continue
            x_title = f"{title}, {unit}" if place == "time" else title
            chart = _chart(
                rows_here,
                [mark for mark in marks if mark[field] is not None],
                list(histories),
                field,
                x_title,
                measure,
                measured,
            )
            figures.append(
                Figure(
                    f"{measure}-by-{place}",
                    "training",
                    f"{measure.capitalize()} by {place}",
                    f"{measured} by {x_title} of {', '.join(histories)}: validation as points joined by thick lines, "
                    "training as thin lines; rules mark the switch to averaged SGD and the beginning of fine-tuning",
                    rows_here,
                    chart,
                    height=340,
                )
            )
    return figures


def _chart(
    rows: Sequence[dict[str, Any]],
    marks: Sequence[dict[str, Any]],
    labels: list[str],
    field: str,
    x_title: str,
    measure: str,
    measured: str,
) -> AnyChart:
    x = alt.X(
        f"{field}:Q",
        title=x_title,
        scale=alt.Scale(zero=True, nice=False),
        axis=alt.Axis(format="~s" if field == "tokens" else "~g", tickMinStep=1 if field == "epoch" else alt.Undefined),
    )
    y = alt.Y(
        f"{measure}:Q",
        title=measured,
        scale=alt.Scale(
            type="log" if measure == "perplexity" else "linear",
            domain=_settled_range(row[measure] for row in rows),
            nice=False,
        ),
        axis=alt.Axis(tickCount=6, format="~g"),
    )
    data = alt.Chart(rows_of(rows, "run", "text", "stage", field, measure))
    valid = data.transform_filter("datum.text == 'validation'")
    runs = by_run(labels)
    tooltip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("stage:N"),
        alt.Tooltip(f"{field}:Q", format=",.0f" if field == "tokens" else ".4~g"),
        alt.Tooltip(f"{measure}:Q", format=".4f" if measure == "loss" else ".2f"),
    ]
    thin = (
        data.transform_filter("datum.text == 'training'")
        .mark_line(strokeWidth=1, opacity=0.45, clip=True)
        .encode(x=x, y=y, color=runs["color"], detail=["stage:N"])
    )
    thick = valid.mark_line(strokeWidth=2.25, clip=True).encode(
        x=x, y=y, color=runs["color"], strokeDash=runs["strokeDash"], detail=["stage:N"]
    )
    points = valid.mark_point(size=46, filled=True, opacity=1, clip=True).encode(
        x=x, y=y, color=runs["color"], shape=runs["shape"], tooltip=tooltip
    )
    return alt.layer(thin, thick, points, *_mark_layers(marks, labels, field, max(row[field] for row in rows), x))


def _mark_layers(
    marks: Sequence[dict[str, Any]], labels: list[str], field: str, end: float, x: alt.X
) -> list[alt.Chart]:
    """A rule where something begins; beside it, at the top, what that is: no two of these share a line."""
    if not marks:
        return []
    rules = (
        alt.Chart(rows_of(marks, "run", "what", field))
        .mark_rule(strokeDash=[3, 3], strokeWidth=1)
        .encode(x=x, color=alt.Color("run:N", scale=run_scale(labels), legend=None), tooltip=["run:N", "what:N"])
    )
    begun_by: dict[tuple[float, str], list[str]] = {}
    for mark in marks:
        begun_by.setdefault((mark[field], mark["what"]), []).append(mark["run"])
    named = [
        {field: place, "label": f"{what}{_of_runs(runs, labels)}", "line": 6 + 13 * number}
        for number, ((place, what), runs) in enumerate(sorted(begun_by.items()))
    ]
    data = alt.Chart(rows_of(named, "label", "line", field))
    # Beside the rule, on the side where there is room.
    y = alt.Y("line:Q", scale=None, axis=None)
    left = data.transform_filter(f"datum['{field}'] <= {end / 2}").mark_text(align="left", dx=4, fontSize=10)
    right = data.transform_filter(f"datum['{field}'] > {end / 2}").mark_text(align="right", dx=-4, fontSize=10)
    return [rules, left.encode(x=x, y=y, text="label:N"), right.encode(x=x, y=y, text="label:N")]


def _of_runs(runs: list[str], labels: list[str]) -> str:
    if runs == labels:
        return ""
    return f" ({runs[0]})" if len(runs) == 1 else f" ({len(runs)} runs)"


def _settled_range(values: Iterable[float]) -> list[float]:
    """What training starts from, thousands of perplexity, would press all the rest against the axis."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, math.ceil(0.97 * len(ordered)))]
    return [float(f"{0.97 * low:.4g}"), float(f"{1.03 * max(high, 1.05 * low):.4g}")]
