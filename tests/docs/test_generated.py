"""What the pages say of commands, settings, options and results is what the code and the files say."""

import json
import re
from pathlib import Path

import pytest

from docs.generate.__main__ import FIGURES, PARTS, ROOT, pages, written
from docs.generate.benchmarks import benchmark_files
from docs.generate.docstrings import as_markdown
from docs.generate.loss_plots import loss_plots


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_is_what_would_be_written(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == written(text), f"{page.name} is not up to date: make docs-write"


def test_the_plots_show_what_would_be_drawn() -> None:
    """Their points: where the text stands depends on the fonts of a machine."""

    def points(plot: str) -> list[str]:
        return re.findall('aria-label="(.+?)"', plot)

    plots = {path.name: path.read_text(encoding="utf-8") for path in FIGURES.iterdir()}
    drawn = loss_plots()
    assert plots.keys() == drawn.keys()
    for name, plot in plots.items():
        assert points(plot) == points(drawn[name]), f"{name} is not up to date: make docs-write"


def test_every_generated_part_is_on_a_page() -> None:
    marked = {name for page in pages() for name in re.findall(r"<!-- generated: (.+?) -->", page.read_text("utf-8"))}
    assert marked == set(PARTS)


def test_a_part_that_changed_is_found() -> None:
    page = "<!-- generated: settings -->\nold\n<!-- end of settings -->\nafter\n"
    assert "train.min_posterior" in written(page)
    assert written(written(page)) == written(page)
    assert written(page).endswith("<!-- end of settings -->\nafter\n")


def test_every_benchmark_and_every_result_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    for path in benchmark_files():
        assert f"`{path.stem}`" in text, path
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
        assert f"benchmarks/results/{path.name}" in text, path


def test_every_option_of_the_2017_code_is_on_the_page() -> None:
    """Its options as they were, from a list that is not ours to change."""
    page = (ROOT / "docs" / "original.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+\.py)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    training = (
        "data model emsize nhid nlayers lr clip epochs batch_size bptt dropout dropouth dropouti dropoute dropoutl "
        "wdrop tied seed nonmono cuda log-interval save alpha beta wdecay continue_train n_experts small_batch_size "
        "max_seq_len_delta single_gpu"
    )
    options = {
        "main.py": f"{training} nhidlast",
        "finetune.py": training,
        "dynamiceval.py": "model data gpu val lamb epsilon lr ms batch_size bptt max_batches",
        "generate.py": "data checkpoint outf words seed cuda temperature log-interval",
    }
    for script, names in options.items():
        listed = re.findall(r"^\| `--([\w-]+)` \|", sections[script], re.M)
        assert sorted(listed) == sorted(names.split()), script


def test_docstrings_as_markdown() -> None:
    said = as_markdown(
        "First.\n\nShape: a (*, K); ``b_*`` (*).\nReturns x_y.\n\nfirst_size: of it,\n    more.\nother: too."
    )
    assert said == (
        "First.\n\nShape: a (\\*, K); `b_*` (\\*).\n\nReturns x\\_y.\n\n\n- **first\\_size**: of it,\n    more.\n"
        "- **other**: too."
    )
