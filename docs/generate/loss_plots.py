"""The plots of the loss's figures, by Altair, as SVG."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

from docs.generate.results import results_of
from highrank.report.page import vegalite_version
from highrank.report.theme import SHAPES, chart_config

__all__ = ["growth_plot", "loss_plots", "posteriors_plot"]

DECADES = [step * 10.0**power for power in range(-4, 6) for step in (1, 2, 5)]  # of a logarithmic axis


def loss_plots() -> dict[str, str]:
    """By the name of the file; the same text from the same figures."""
    return {
        name: vl_convert.vegalite_to_svg(
            {**chart.to_dict(), "config": chart_config("paper")}, vl_version=vegalite_version()
        )
        + "\n"
        for name, chart in _charts()
    }


def growth_plot(file: str) -> str:
    """The name of the plot of a file of ``bench_loss_growth``."""
    return f"{file.removeprefix('bench_').removesuffix('.json').replace('.', '_')}.svg"


def posteriors_plot(number: int) -> str:
    """The name of the plot of a file of ``bench_posterior_filter``, counted from 0."""
    return f"posteriors{number or ''}.svg"


def _charts() -> Iterator[tuple[str, alt.TopLevelMixin]]:
    for file, found in results_of("bench_loss_growth"):
        yield growth_plot(file), _growth(found["results"])
    for number, (_, found) in enumerate(results_of("bench_posterior_filter")):
        yield posteriors_plot(number), _posteriors(found["results"].values())


def _growth(results: Mapping[str, Any]) -> alt.VConcatChart:
    """Time, and below it memory, of every candidate as one size grows, a panel a size."""
    axes = list(next(iter(results.values())))
    measures = {"seconds": "seconds", "MiB": "MiB beside inputs and gradients"}
    return alt.vconcat(
        *(
            alt.hconcat(*(_growth_panel(results, axis, measure, title) for axis in axes)).resolve_scale(y="shared")
            for measure, title in measures.items()
        )
    )


def _growth_panel(results: Mapping[str, Any], axis: str, measure: str, title: str) -> alt.Chart:
    """On two logarithmic axes."""
    sizes = [
        {"candidate": name, "size": size, "seconds": seconds, "MiB": size_bytes / 2**20}
        for name, by_axis in results.items()
        for size, seconds, size_bytes in zip(
            by_axis[axis]["values"], by_axis[axis]["seconds"], by_axis[axis]["working_bytes"], strict=True
        )
    ]
    values = sorted({row["size"] for row in sizes})
    x = alt.X(
        "size:Q",
        title=axis,
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=values, format=",", grid=False),
    )
    y = alt.Y(
        f"{measure}:Q", title=title, scale=alt.Scale(type="log", nice=False), axis=alt.Axis(values=DECADES, format="~g")
    )
    lines = alt.Chart({"values": sizes}).mark_line(point={"size": 40})
    return lines.encode(x=x, y=y, **_by("candidate", list(results))).properties(width=170, height=160)


def _posteriors(results: Iterable[Mapping[str, Any]]) -> alt.Chart:
    """A histogram, by decades, of each model."""
    rows: list[dict[str, Any]] = []
    for result in results:
        histogram = result["posteriors"]["histogram"]
        decades = [f"<{histogram['edges'][1]:.0e}", *(f"{edge:.0e}" for edge in histogram["edges"][1:-1])]
        rows += [
            {"model": f"K = {result['model']['num_components']}", "posterior": decade, "share": 100 * share}
            for decade, share in zip(decades, histogram["share"], strict=True)
        ]
    x = alt.X("posterior:O", sort=decades, title="posterior, from this to ten times it", axis=alt.Axis(labelAngle=0))
    y = alt.Y("share:Q", title="% of all (token, component)")
    models = list(dict.fromkeys(row["model"] for row in rows))
    chart = alt.Chart({"values": rows}).mark_line(point={"size": 50})
    return chart.encode(x=x, y=y, **_by("model", models)).properties(width=420, height=210)


def _by(field: str, names: Sequence[str]) -> dict[str, Any]:
    """Colour and shape of the lines of a plot, with one legend."""
    legend = alt.Legend(orient="top", title=None)
    return {
        "color": alt.Color(f"{field}:N", scale=alt.Scale(domain=names), legend=legend),
        "shape": alt.Shape(f"{field}:N", scale=alt.Scale(domain=names, range=SHAPES[: len(names)]), legend=legend),
    }
