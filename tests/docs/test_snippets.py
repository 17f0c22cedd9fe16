"""The runner of snippets finds what is wrong with a page."""

from pathlib import Path

import pytest

from tests.docs.snippets import Block, blocks, check, run


def block(text: str, *, language: str = "bash", mark: str = "", words: str = "") -> Block:
    return Block("page.md:1", mark, words, language, "", text)


@pytest.mark.parametrize(
    "line",
    [
        "highrank train penn --epochs 3",
        "highrank evaluate",
        "highrank train pen --out runs/penn",
        "highrank train penn --set train.epoch=3",
        "make everything",
        'pip install ".[kvj]"',
        "python -m benchmarks.faults --deaths 50",
        "python -m benchmarks.report_loss --quick",
        "python main.py --nhids 12",
        "torchrun --nnodes 2 -m highrank train wikitext-2 --worker 3",
        "torchrun --nodes 2 -m highrank train wikitext-2",
        "rm -r runs",
    ],
)
def test_what_is_not_run_is_checked(line: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, OSError)):
        check(block(line), tmp_path)


def test_what_runs_has_to_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="exit code 1"):
        run(block("highrank evaluate nowhere"), tmp_path, {})
    with pytest.raises(AssertionError, match=r"(?s)no address: .*invalid _port value"):
        run(block("highrank explore nowhere --port none"), tmp_path, {})
    with pytest.raises(NameError):
        run(block("print(nothing)", language="python"), tmp_path, {})
    with pytest.raises(AssertionError, match="no test knows how to run"):
        run(block("ls", language="fish"), tmp_path, {})
    with pytest.raises(AssertionError, match="reason is missing"):
        run(block("highrank run penn", mark="not run", words="long"), tmp_path, {})


def test_blocks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Words.\n\n<!-- first:\na = 1\n-->\n```python\nprint(a)\n```\n\n<!-- printed: by the block before -->\n"
        '```text\n1\n```\n\n```toml title="a.toml"\nb = 2\n```\n',
        encoding="utf-8",
    )
    first, printed, file = blocks(page)
    assert (first.place, first.mark, first.words) == ("page.md:7", "first", "a = 1")
    assert run(first, tmp_path, {}) == printed.text
    run(file, tmp_path, {})
    assert (tmp_path / "a.toml").read_text(encoding="utf-8") == "b = 2\n"

    page.write_text("<!-- not run: it is long -->\n\nWords.\n\n```bash\nls\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="a mark that stands before no block"):
        blocks(page)
