"""A plot of a report as an Altair chart: one specification serves the page, and as SVG and PDF a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from highrank.report.theme import DASHES, SHAPES, Look, chart_config

__all__ = ["AnyChart", "Figure", "by_run", "rows_of", "run_scale"]

AnyChart = alt.Chart | alt.LayerChart | alt.FacetChart

PAPER_WIDTH = 440


@dataclass(frozen=True)
class Figure:
    """What a plot is called (of files too), what it shows in words, its data as rows, and its chart.

    ``group`` names the place in the page: figures of one group are shown one at a time, or side by side.
    """

    name: str
    group: str
    title: str
    description: str
    rows: Sequence[dict[str, Any]]
    chart: AnyChart
    height: int = 300
    paper_width: int = PAPER_WIDTH

    def specification(self, look: Look, *, width: int | None = None) -> dict[str, Any]:
        """Vega-Lite, complete: as wide as its place in the page, or as a column of print, or ``width`` pixels."""
        chart = self.chart.properties(
            width=width or ("container" if look == "page" else self.paper_width),
            height=self.height,
            description=self.description,
        )
        return {**chart.to_dict(), "config": chart_config(look)}


def rows_of(rows: Sequence[dict[str, Any]], *names: str) -> dict[str, Any]:
    """These columns, inside the specification."""
    return {"values": [{name: row[name] for name in names} for row in rows]}


def by_run(labels: Sequence[str]) -> dict[str, Any]:
    """Colour, dash and shape of each run. One legend for the three, above the plot, where there are several runs."""
    legend = alt.Legend(orient="top", title=None, direction="vertical") if len(labels) > 1 else None

    def ranged(values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=list(labels), range=[values[number % len(values)] for number in range(len(labels))])

    return {
        "color": alt.Color("run:N", scale=run_scale(labels), legend=legend),
        "strokeDash": alt.StrokeDash("run:N", scale=ranged(DASHES), legend=legend),
        "shape": alt.Shape("run:N", scale=ranged(SHAPES), legend=legend),
    }


def run_scale(labels: Sequence[str]) -> alt.Scale:
    """The colours of the look, the first for the first run."""
    return alt.Scale(domain=list(labels))
