"""The table of the benchmarks: each one's question, and the files with its answers."""

import ast
from pathlib import Path

from docs.generate.markdown import table
from docs.generate.results import read_results

__all__ = ["benchmark_files", "benchmark_table"]

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def benchmark_files() -> list[Path]:
    """The files that can be run, as ``make bench`` lists them."""
    return [path for path in sorted(FOLDER.glob("*.py")) if '__name__ == "__main__"' in path.read_text("utf-8")]


def benchmark_table() -> str:
    results = read_results()
    rows = []
    for path in benchmark_files():
        question = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        answers = [name for name in results if name.startswith((f"{path.stem}.", f"{path.stem}_"))]
        rows.append(
            [
                f"`{path.stem}`",
                question,
                ", ".join(f"[{_shown(path, name)}](../benchmarks/results/{name})" for name in answers) or "-",
            ]
        )
    return table(["file", "question", "results"], rows)


def _shown(path: Path, name: str) -> str:
    """What the name of a result says beside that of its benchmark."""
    return name.removeprefix(path.stem).removesuffix(".json").strip("._") or path.stem
