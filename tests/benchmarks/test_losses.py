"""Sizes of the benchmarks of the loss, as they are given on the command line."""

import argparse

import pytest

from benchmarks.losses import CPU_SIZES, Size, add_sizes, sizes


def chosen(*words: str) -> dict[str, Size]:
    parser = argparse.ArgumentParser()
    add_sizes(parser)
    return sizes(parser, parser.parse_args(words).sizes, "cpu")


def test_sizes_by_name_and_by_number() -> None:
    assert chosen() == dict(CPU_SIZES)
    assert chosen("--sizes", "penn", "64,3,16,100") == {"penn": CPU_SIZES["penn"], "64,3,16,100": Size(64, 3, 16, 100)}


@pytest.mark.parametrize("words", ["pen", "64,3,16", "64,3,16,0", "64,3,16,1e3"])
def test_what_is_no_size_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        chosen("--sizes", words)
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"got {words!r}" in said
    assert "penn, wikitext-2, one-softmax" in said
