"""The commands for several machines: as many workers as their recipe has micro-batches, at most."""

import re
from pathlib import Path

import pytest

from highrank.runs import find_recipe, read_config
from highrank.train.checks import check_workers
from tests.docs.snippets import blocks

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
MACHINES = 2
LAUNCHED = [block.text for block in blocks(PAGE) if "-m highrank" in block.text]


@pytest.mark.parametrize("code", LAUNCHED)
def test_the_workers_are_not_too_many(code: str) -> None:
    joined = code.replace("\\\n", " ")
    for words in re.findall(r"--nproc-per-node (.*)", joined):
        recipe = re.search(r"highrank train (\S+)", words)
        assert recipe is not None
        config = read_config(find_recipe(recipe[1]), overrides=re.findall(r"--set (\S+)", words))
        check_workers(config, MACHINES * int(words.split()[0]))


def test_there_are_commands() -> None:
    assert len(LAUNCHED) == 2
