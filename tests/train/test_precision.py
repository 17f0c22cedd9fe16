"""``train.precision``: which products are rounded, and what stays in float32."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.processes import RECIPE
from highrank.data import load_corpus
from highrank.data.batches import Columns
from highrank.models.awd_lstm import DropConnectLSTM
from highrank.runs import Config, RunFolder, build_model, read_config
from highrank.runs.device import multiplies_bfloat16
from highrank.train import Machine, StageState, train_stage, update
from tests.telling import Telling

PRODUCTS = ("mm", "addmm", "addmm_", "linear")


@dataclass
class Seen(TorchDispatchMode):
    """The dtypes of the matrix products that run while it is on."""

    products: list[torch.dtype] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            self.products += [x.dtype for x in args if isinstance(x, Tensor) and x.dim() == 2]
        return func(*args, **kwargs or {})


def updates(config: Config, text: Path, count: int = 3) -> tuple[StageState, list[float], list[torch.dtype]]:
    """Where some updates of a fresh model lead, their losses, and the dtypes of the products of the last one."""
    corpus = load_corpus(text)
    torch.manual_seed(1)
    state = StageState(build_model(config, len(corpus.vocabulary)).train(), config)
    columns = Columns(corpus.tokens["train"], config.train.batch)
    losses = []
    for _ in range(count):
        with Seen() as seen:
            done = update(state, columns, config, seed=1, lr=config.train.lr, length=config.train.bptt)
        state.position.add_step(done.steps, done.steps * config.train.batch)
        losses.append(done.loss_sum.item() / (done.steps * config.train.batch))
    return state, losses, seen.products


def test_the_products_of_the_head_are_rounded_and_nothing_else(small_text: Path) -> None:
    by_precision = {
        precision: updates(read_config(RECIPE, overrides=[f"train.precision={precision}"]), small_text)
        for precision in ("float32", "bfloat16")
    }
    (exact, exact_losses, exact_products), (short, short_losses, short_products) = by_precision.values()
    assert set(exact_products) == {torch.float32}
    assert short_products.count(torch.bfloat16) > len(short_products) / 2
    assert short_losses != exact_losses
    assert short_losses == pytest.approx(exact_losses, rel=2e-3)
    for state in (exact, short):
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        assert all(x.dtype == torch.float32 for carried in state.carried for pair in carried for x in pair)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in short.model.parameters())


def test_validation_does_not_round(small_text: Path, tmp_path: Path) -> None:
    """The loss of what was trained with rounded products is that of its weights."""
    from highrank.evaluate import evaluate

    corpus = load_corpus(small_text)
    config = read_config(RECIPE, overrides=["train.precision=bfloat16", "train.epochs=1"])
    run = RunFolder.create(tmp_path / "run", config, corpus.vocabulary, corpus)
    figures = train_stage(run, "train", corpus)
    loss = evaluate(run.load_model("train"), corpus.tokens["valid"], batch=config.train.valid_batch).loss_nats
    assert figures["valid_loss_nats"] == loss


def test_a_layer_under_autocast_computes_on_a_cpu_as_without() -> None:
    torch.manual_seed(1)
    layer = DropConnectLSTM(4, 6, 0.0)
    for steps in (2, 30):  # short enough for short_lstm, and not
        sequence, state = torch.randn(steps, 3, 4), (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6))
        expected, _ = layer(sequence, state)
        with torch.autocast("cpu", torch.bfloat16):
            output, (hidden, cell) = layer(sequence, state)
        assert output.equal(expected)
        assert {output.dtype, hidden.dtype, cell.dtype} == {torch.float32}


def test_a_processor_without_such_products_is_named(
    monkeypatch: pytest.MonkeyPatch, small_text: Path, tmp_path: Path
) -> None:
    def said(name: str) -> list[str]:
        display = Telling()
        run = RunFolder.create(tmp_path / name, config, corpus.vocabulary, corpus)
        train_stage(run, "train", corpus, Machine(display=display))
        return [text for text in display.messages if "bfloat16" in text]

    corpus = load_corpus(small_text)
    config = read_config(RECIPE, overrides=["train.precision=bfloat16", "train.epochs=1"])
    found: dict[str, object] = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert not multiplies_bfloat16("cpu")
    assert len(said("without")) == 1
    found["amx_bf16"] = True
    assert multiplies_bfloat16("cpu")
    assert said("with") == []
