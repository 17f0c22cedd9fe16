"""Reports on runs for people."""

from highrank.report.summary import summary_lines, summary_rows

__all__ = ["summary_lines", "summary_rows"]
