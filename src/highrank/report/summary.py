"""The stages of a run in one table: perplexity on validation and test text, and the time each took."""

from collections.abc import Iterator
from typing import Any

from highrank.runs import RunFolder
from highrank.runs.records import STAGE_TITLES

__all__ = ["summary_lines", "summary_rows"]


def summary_rows(run: RunFolder) -> list[dict[str, Any]]:
    """For each stage that has results: stage, valid and test perplexity (None: not measured), elapsed_s."""
    results = run.results
    rows = []
    for name, title in STAGE_TITLES.items():
        result = results.get(name)
        if result is None:
            continue
        rows.append(
            {
                "stage": title,
                "valid_perplexity": result.get("valid", {}).get("perplexity"),
                "test_perplexity": result.get("test", {}).get("perplexity"),
                # None: an imported model, whose training is not known here.
                "elapsed_s": result.get("elapsed_s"),
            }
        )
    return rows


def summary_lines(run: RunFolder) -> Iterator[str]:
    yield f"{'stage':<20}{'valid perplexity':>18}{'test perplexity':>18}{'time':>10}"
    for row in summary_rows(run):
        valid, test = (_number(row[key]) for key in ("valid_perplexity", "test_perplexity"))
        elapsed = "-" if row["elapsed_s"] is None else f"{row['elapsed_s']:.0f} s"
        yield f"{row['stage']:<20}{valid:>18}{test:>18}{elapsed:>10}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
