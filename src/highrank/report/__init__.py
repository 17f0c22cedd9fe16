"""Reports on runs for people."""

from highrank.report.gather import Subject, Wanted, check_comparable, gather
from highrank.report.summary import summary_lines, summary_rows
from highrank.report.write import check_plotting, check_writable, figures_of, write_figures, write_page

__all__ = [
    "Subject",
    "Wanted",
    "check_comparable",
    "check_plotting",
    "check_writable",
    "figures_of",
    "gather",
    "summary_lines",
    "summary_rows",
    "write_figures",
    "write_page",
]
