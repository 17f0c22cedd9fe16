"""Colours, dashes and the configuration of charts: one look for the page, in light and dark, and one for papers."""

from typing import Any, Literal

__all__ = ["DASHES", "SHAPES", "Look", "chart_config"]

# "page": colours are variables of the page's style sheet, so that a chart follows it from light to dark and to paper.
# "paper": colours are numbers, the sizes those of a column of print.
Look = Literal["page", "paper"]

# Told apart by most who see fewer colours; beside the colour every run has a dash and a shape of its own.
COLOURS = ("#1f5fa8", "#c2410c", "#0f766e", "#8b3fa0", "#a16207", "#4b5563")
DASHES = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3], [4, 4], [12, 3])
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")

PAPER_COLOURS = {"ink": "#111111", "muted": "#555555", "grid": "#dddddd"}
FONTS = {"page": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "paper": "Helvetica, Arial, sans-serif"}


def _colour_range(look: Look) -> list[str]:
    return [f"var(--series-{number})" for number in range(1, len(COLOURS) + 1)] if look == "page" else list(COLOURS)


def chart_config(look: Look) -> dict[str, Any]:
    """Vega-Lite's ``config``."""
    colours = {name: f"var(--{name})" for name in PAPER_COLOURS} if look == "page" else PAPER_COLOURS
    axis = {
        "labelColor": colours["muted"],
        "titleColor": colours["ink"],
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 11,
        "gridColor": colours["grid"],
        "domainColor": colours["muted"],
        "tickColor": colours["muted"],
        "labelFlush": False,
    }
    return {
        "background": None if look == "page" else "white",
        "font": FONTS[look],
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False},
        "legend": {
            "labelColor": colours["ink"],
            "titleColor": colours["ink"],
            "labelFontSize": 12,
            "symbolSize": 90,
            "symbolStrokeWidth": 2,
            "labelLimit": 300,
            "symbolOpacity": 1,
        },
        "text": {"color": colours["ink"], "fontSize": 11},
        "rule": {"color": colours["muted"]},
        "range": {"category": _colour_range(look)},
    }
