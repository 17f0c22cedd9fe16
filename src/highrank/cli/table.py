"""Tables: drawn to the width of a terminal, plain aligned columns when piped."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

__all__ = ["Column", "aligned", "print_table"]

GAP = 2


@dataclass(frozen=True)
class Column:
    """``spare``: where a terminal is too narrow, columns with the largest number are left out first (0: never)."""

    title: str
    right: bool = False
    spare: int = 0


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows``, each with a text for every column, to standard output."""
    if sys.stdout.isatty():
        _draw(columns, rows, _widths(columns, rows))
        return
    for line in aligned(columns, rows):
        print(line)


def aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The titles and ``rows`` as plain lines, however wide."""
    widths = _widths(columns, rows)
    for texts in ([column.title for column in columns], *rows):
        cells = (_padded(*each) for each in zip(texts, columns, widths, strict=True))
        yield (" " * GAP).join(cells).rstrip()


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    titles = [column.title for column in columns]
    return [max(cell_len(text) for text in texts) for texts in zip(titles, *rows, strict=True)]


def _draw(columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = _fitting(columns, widths, console.width)
    fits = _needed(shown, widths) <= console.width
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for place in shown:
        table.add_column(
            Text(columns[place].title),
            justify="right" if columns[place].right else "left",
            no_wrap=fits,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(row[place]) for place in shown))
    console.print(table)
    if left_out := [column.title for place, column in enumerate(columns) if place not in shown]:
        console.print(Text(f"too narrow for: {', '.join(left_out)}", style="dim"))


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The places of the columns that are drawn. The last ones may still be too wide, and are folded."""
    shown = list(range(len(columns)))
    for place in sorted(shown, key=lambda place: -columns[place].spare):
        if _needed(shown, widths) <= width or not columns[place].spare:
            break
        shown.remove(place)
    return shown


def _needed(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[each] for each in shown) + GAP * (len(shown) - 1)


def _padded(text: str, column: Column, width: int) -> str:
    fill = " " * (width - cell_len(text))
    return fill + text if column.right else text + fill
