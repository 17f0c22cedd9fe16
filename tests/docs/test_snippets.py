"""The runner of snippets finds what is wrong with a page, and makes of a block what its marks say."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.docs.programs import STAND_INS
from tests.docs.snippets import Block, blocks, run


def block(text: str, *, language: str = "bash", title: str = "", **marks: str) -> Block:
    """``in_place_of`` and the like are the kinds of marks."""
    return Block("page.md:1", {kind.replace("_", " "): words for kind, words in marks.items()}, language, title, text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("highrank evaluate nowhere", "exit code 1"),
        ("highrank train penn --epochs 3", "exit code 2"),
        ("highrank explore nowhere --port none", r"(?s)no address: .*expected a port"),
        ("python -m benchmarks.nothing", "exit code 1.*No module named"),
        ("make everything", "(?s)exit code 2.*everything"),
        ("torchrun --nodes 2 -m highrank train wikitext-2", "(?s)torchrun: exit code 2.*--nodes"),
        ("ls nowhere", "exit code 2"),
    ],
)
def test_what_runs_has_to_succeed(folder: Path, text: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        run(block(text), folder, {})


def test_a_program_that_is_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run(block("no-such-program"), folder, {})
    with pytest.raises(NameError):
        run(block("print(nothing)", language="python"), folder, {})
    with pytest.raises(AssertionError, match="no test knows how to run"):
        run(block("ls", language="fish"), folder, {})


def test_words_that_a_mark_adds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHAT", "two words")
    text = "echo a \\\n    b  # a comment\n\necho c\n# nothing\n"
    assert run(block(text), folder, {}) == "a b\nc\n"
    assert run(block(text, run_with="echo + d 'e  f'"), folder, {}) == "a b d e  f\nc d e  f\n"
    assert run(block(text, run_with="echo c + $WHAT\necho + '$WHAT'"), folder, {}) == (
        "a b two words\nc two words two words\n"
    )
    with pytest.raises(AssertionError, match="no command begins with echo d"):
        run(block(text, run_with="echo d + e"), folder, {})


def test_words_without_a_command_go_to_training_or_to_all_of_highrank(folder: Path) -> None:
    looking = block("echo a\nhighrank --version\nhighrank data list", run_with="--help")
    assert "usage: highrank data list" in run(looking, folder, {})
    training = run(block("highrank data list\nhighrank train penn", run_with="--help"), folder, {})
    assert "usage: highrank train" in training
    assert "usage: highrank data" not in training


def test_what_a_mark_puts_in_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "127.0.0.1")
    filled = block("mkdir RUN-2026\necho FOLDER/x FIRST\n", in_place_of="FOLDER -> RUN-*\nFIRST -> $WHERE")
    assert run(filled, folder, {}) == "RUN-2026/x 127.0.0.1\n"
    with pytest.raises(AssertionError, match="in place of what"):
        run(block("echo a", in_place_of="b -> c"), folder, {})
    with pytest.raises(AssertionError, match=r"there is no other-\*"):
        run(block("echo FOLDER", in_place_of="FOLDER -> other-*"), folder, {})
    run(block("port = 1\n", language="toml", title="a.toml", in_place_of="1 -> 2"), folder, {})
    assert (folder / "a.toml").read_text(encoding="utf-8") == "port = 2\n"


def test_each_block_begins_in_the_folder(folder: Path) -> None:
    (folder / "inner").mkdir()
    assert run(block("cd inner\npwd"), folder, {}) == f"{folder / 'inner'}\n"
    assert run(block("pwd"), folder, {}) == f"{folder}\n"


def test_blocks_of_a_page(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text(
        "Words.\n\n<!-- slow: it is long -->\n<!-- first:\na = 1\n-->\n```python\nprint(a)\n```\n\n"
        '<!-- printed: by the block before -->\n```text\n1\n```\n\n```toml title="a.toml"\nb = 2\n```\n',
        encoding="utf-8",
    )
    first, printed, file = blocks(page)
    assert (first.place, first.slow, first.marks["first"]) == ("page.md:7", True, "a = 1")
    assert run(first, folder, {}) == printed.text
    assert not printed.slow
    run(file, folder, {})
    assert (folder / "a.toml").read_text(encoding="utf-8") == "b = 2\n"

    page.write_text("<!-- slow: it is long -->\n\nWords.\n\n```bash\nls\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="a mark that stands before no block"):
        blocks(page)
    page.write_text("<!-- not run: it is long -->\n```bash\nls\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="marks that mean nothing: not run"):
        blocks(page)
    page.write_text("<!-- slow: a -->\n<!-- slow: b -->\n```bash\nls\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="a mark stands twice"):
        blocks(page)


def test_slurms_stand_ins_run_one_task_a_node_and_fail_with_it(folder: Path) -> None:
    script = folder / "job"
    environment = os.environ | {"PATH": f"{STAND_INS}{os.pathsep}{os.environ['PATH']}"}

    def sbatch(last: str) -> "subprocess.CompletedProcess[str]":
        script.write_text(f'#!/bin/bash\n#SBATCH --nodes=3\nscontrol show hostnames "$SLURM_JOB_NODELIST"\n{last}\n')
        return subprocess.run(["sbatch", script], env=environment, capture_output=True, text=True, check=False)

    done = sbatch("srun bash -c 'echo $SLURM_NODEID of $SLURM_NNODES'")
    assert done.stdout.splitlines()[:3] == ["127.0.0.1"] * 3
    assert sorted(done.stdout.splitlines()[3:]) == ["0 of 3", "1 of 3", "2 of 3"]
    assert sbatch("srun bash -c 'exit $SLURM_NODEID'").returncode == 2
