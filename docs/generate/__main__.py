"""Writes what follows from code and results into the pages: ``python -m docs.generate`` (``make docs-write``).

A page has ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``; what stands between them is this program's, and so
are the plots in ``docs/figures``. ``tests/docs/test_generated.py`` fails where one is not what would be written.
"""

import re
from pathlib import Path

from docs.generate.benchmarks import benchmark_table
from docs.generate.commands import command_reference
from docs.generate.loss import loss_figures
from docs.generate.loss_plots import loss_plots
from docs.generate.original import option_tables
from docs.generate.results import paper_table, rank_table, recipe_table, run_list, tutorial_table
from docs.generate.settings import settings_reference
from docs.generate.speed import (
    dynamic_evaluation_table,
    filtered_step_table,
    floor_table,
    step_table,
    time_table,
    waiting_table,
)
from docs.generate.studies import gain_part, study_part
from docs.generate.temperature import temperature_table
from docs.generate.trials import trial_table

__all__ = ["FIGURES", "PARTS", "ROOT", "pages", "written"]

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
PARTS = {
    "ablation": lambda: study_part("ablation"),
    "ablation gains": lambda: gain_part("ablation"),
    "benchmarks": benchmark_table,
    "commands": command_reference,
    "dynamic evaluation": dynamic_evaluation_table,
    "filtered steps": filtered_step_table,
    "floors": floor_table,
    "longer": lambda: study_part("longer"),
    "loss": loss_figures,
    "options of 2017": option_tables,
    "penn": lambda: paper_table("penn"),
    "precision": lambda: study_part("precision"),
    "ranks": rank_table,
    "recipes": recipe_table,
    "runs": run_list,
    "schedules": lambda: study_part("schedules"),
    "settings": settings_reference,
    "steps": step_table,
    "temperature": temperature_table,
    "times": time_table,
    "trials": trial_table,
    "tutorial": tutorial_table,
    "waiting": waiting_table,
    "wikitext-2": lambda: paper_table("wikitext-2"),
}
MARKED = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def written(page: str) -> str:
    """The text of a page with every generated part as it should be now."""
    return MARKED.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", page)


if __name__ == "__main__":
    found = {path: written(path.read_text(encoding="utf-8")) for path in pages()}
    found |= {FIGURES / name: plot for name, plot in loss_plots().items()}
    for path, text in found.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
