"""Sizes of the benchmarks of the loss, as they are given on the command line, and what is computed at a size."""

import argparse

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_loss_speed import forward_and_backward
from benchmarks.losses import CPU_SIZES, Size, add_sizes, make_case, ours, products, sizes
from highrank.functional import FLOP_FORMULAS
from highrank.ops import options


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


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_the_floor_and_ours_do_as_many_operations_as_a_size_has(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "DEFAULT_BLOCK_BYTES", dict.fromkeys(("cpu", "other"), block_bytes))
    size = Size(6, 3, 5, 41)
    case = make_case(size)
    for call in (products(case), lambda: forward_and_backward(ours("chunked"), case)):
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
            call()
        assert counter.get_total_flops() == size.operations
