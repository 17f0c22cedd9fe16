"""Markdown that several generated parts are made of."""

from collections.abc import Iterable, Sequence

__all__ = ["cell", "table"]


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """A table; the columns in ``numbers`` are aligned to the right."""
    right = set(numbers)
    lines = [head, ["--:" if column in right else "---" for column in range(len(head))], *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)
