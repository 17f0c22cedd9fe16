"""From runs to files: the page, and its plots for papers."""

import csv
import io
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrank.errors import UserError, not_importable
from highrank.files import explained, temporary_folder, write_bytes, write_text
from highrank.report.gather import Subject

if TYPE_CHECKING:
    from highrank.report.figure import Figure

__all__ = ["check_plotting", "check_writable", "figures_of", "write_figures", "write_page"]

LIMIT_BYTES = 8_000_000


def check_plotting() -> None:
    """Raises UserError if the libraries of the extra are not there. To be called before anything is measured."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise not_importable(error, "report") from error


def check_writable(page: Path, figures: Path | None) -> None:
    """Raises UserError if the page or the folder of figures cannot be written. To be called before anything is
    measured."""
    with explained(page):
        if page.is_dir():
            raise IsADirectoryError
        with temporary_folder(page.parent):
            pass
    if figures is not None:
        with explained(figures), temporary_folder(figures):
            pass


def figures_of(subjects: Sequence[Subject]) -> "list[Figure]":
    """All plots that there is something for."""
    from highrank.report.model_figures import component_figures, spectrum_figures
    from highrank.report.training_figures import training_figures

    ranks = {subject.label: subject.rank for subject in subjects if subject.rank is not None}
    components = {subject.label: subject.components for subject in subjects if subject.components is not None}
    return [
        *training_figures({subject.label: subject.history for subject in subjects}),
        *spectrum_figures(ranks),
        *component_figures(components),
    ]


def write_page(path: Path, subjects: Sequence[Subject], figures: "Sequence[Figure]", *, command: str) -> int:
    """Write the page; returns its size in bytes."""
    from highrank.report.page import render

    page = render(subjects, figures, date=time.strftime("%Y-%m-%d"), command=command).encode(errors="backslashreplace")
    if len(page) > LIMIT_BYTES:
        raise UserError(
            f"{path}: the report would have {len(page):,} bytes, more than {LIMIT_BYTES:,}; take a shorter passage "
            "(--words) or fewer runs"
        )
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, page)
    return len(page)


def write_figures(folder: Path, figures: "Sequence[Figure]") -> list[Path]:
    """Each plot as SVG and PDF, as wide as a column, and its data as CSV. Returns the files."""
    import vl_convert

    from highrank.report.page import vegalite_version

    written: list[Path] = []
    taken: set[str] = set()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            specification = figure.specification("paper")
            svg = vl_convert.vegalite_to_svg(specification, vl_version=vegalite_version())
            pdf = vl_convert.vegalite_to_pdf(specification, vl_version=vegalite_version())
            name = _free(re.sub(r"[^\w.-]+", "-", figure.name), taken)
            taken.add(name)
            paths = [folder / f"{name}{ending}" for ending in (".svg", ".pdf", ".csv")]
            write_text(paths[0], svg)
            write_bytes(paths[1], pdf)
            write_text(paths[2], _as_csv(figure.rows))
            written += paths
    return written


def _free(name: str, taken: Collection[str]) -> str:
    """``name``, with a number if it is taken."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
