"""Recorded passes give the bits of passes as they come.

A CPU has no CUDA graphs. ``Tape`` stands in for one: it writes down the operations of a pass with the memory that they
read and write, and replays them there, without the Python that asked for them. A GPU's own:
``tests/gpu/test_training.py``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.processes import RECIPE
from highrank.data import load_corpus
from highrank.data.batches import Columns
from highrank.runs import build_model, read_config
from highrank.train import StageState, graphs, update
from highrank.train.graphs import RecordedPasses

LENGTHS = [16, 12, 16, 16, 12, 9, 12, 16, 9, 9, 16, 12]


class Tape(TorchDispatchMode):
    """Operations, in their order, with what they read and wrote. Whoever is on it has been computed once already."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tensors(found)))
        return found

    def replay(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():  # where they were when they were written down
            for func, args, kwargs, written in self.operations:
                for old, new in zip(written, tensors(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():  # neither in place nor a view
                        old.copy_(new)


def tensors(of: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)]


def on_tape(passes: Callable[[], None], generators: Sequence[torch.Generator], *, of: list[RecordedPasses]) -> Any:
    """A capture. Recording a CUDA graph computes nothing, so here all memory that outlives it is put back."""
    outliving = [*of[0]._gradients, *tensors(of[0]._state)]
    before = [tensor.clone() for tensor in outliving], [generator.get_state() for generator in generators]
    with Tape() as tape:
        passes()
    for tensor, value in zip(outliving, before[0], strict=True):
        tensor.copy_(value)
    for generator, value in zip(generators, before[1], strict=True):
        generator.set_state(value)
    return tape.replay


def updated(text: Path, overrides: list[str], *, record: bool) -> tuple[list[float], StageState]:
    """The losses and norms of updates of a fresh model, over the beginning of a second epoch, and where they lead."""
    corpus = load_corpus(text)
    config = read_config(RECIPE, overrides=["train.micro_batch=0", *overrides])
    state = StageState(build_model(config, len(corpus.vocabulary)).train(), config)
    state.start_averaging()
    if record:
        of: list[RecordedPasses] = []
        state.recorded = RecordedPasses(state.model, config, lambda *arguments: on_tape(*arguments, of=of))
        of.append(state.recorded)
    columns = Columns(corpus.tokens["train"], config.train.batch)
    found = []
    for step, length in enumerate(LENGTHS):
        if step == 7:
            state.start_epoch()
        done = update(state, columns, config, seed=1, lr=config.train.lr, length=length)
        state.position.add_step(done.steps, done.steps * config.train.batch)
        found += [done.loss_sum.item(), done.norm.item()]
    return found, state


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.optimizer=adamw", "train.lr=0.01", "train.precision=bfloat16"],
        ["model.head=softmax"],
        ["train.past_decode=0.1"],
    ],
    ids=" ".join,
)
def test_the_same_bits(overrides: list[str], small_text: Path) -> None:
    (plain, plain_state), (found, state) = (updated(small_text, overrides, record=record) for record in (False, True))
    assert found == plain
    assert state.recorded is not None
    assert sorted(state.recorded._recordings) == [9, 12, 16]
    assert all(
        ours.equal(theirs) for ours, theirs in zip(tensors(state.carried), tensors(plain_state.carried), strict=True)
    )
    weights, plain_weights = (list(each.model.parameters()) for each in (state, plain_state))
    assert all(ours.equal(theirs) for ours, theirs in zip(weights, plain_weights, strict=True))


def test_the_first_of_each_length_and_what_is_too_many_come_as_they_are(
    small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = updated(small_text, [], record=False)
    monkeypatch.setattr(graphs, "MOST_RECORDED", 2)
    found, state = updated(small_text, [], record=True)
    assert found == plain
    assert state.recorded is not None
    assert sorted(state.recorded._recordings) == [12, 16]  # 9 was next
    assert state.recorded._seen == {9, 12, 16}
