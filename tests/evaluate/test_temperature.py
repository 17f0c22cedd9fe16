"""The loss at a softmax temperature: by the definition, for every head; and the search for the best one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.bench_temperature import measure
from benchmarks.harness import memory_of
from highrank.data import Corpus, load_corpus
from highrank.errors import UserError
from highrank.evaluate import evaluate, evaluate_at, evaluate_run, evaluate_run_at, temperature, tune_temperature
from highrank.heads import Head, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from highrank.models import LanguageModel
from tests.parity import default_dtype, small_model
from tests.telling import Telling
from tests.untrained import make_run


def text(length: int, words: int = 17) -> NDArray[np.int32]:
    return np.random.default_rng(1).integers(words, size=length, dtype=np.int32)


def with_head(kind: type[Head]) -> LanguageModel:
    model = small_model(seed=1, spread=0.8)
    more: dict[str, Any] = {} if kind is Softmax else {"num_components": 3}
    generator = torch.Generator().manual_seed(2)
    with default_dtype(torch.float64), torch.no_grad():
        model.head = kind(7, 17, context_features=6, **more)
        for parameter in model.head.parameters():
            parameter.uniform_(-1.5, 1.5, generator=generator)
    return model


def by_definition(model: LanguageModel, tokens: NDArray[np.int32], temperature: float, batch: int) -> float:
    """The log-probabilities of the mixture, whole; divided, normalised, and those of the targets taken."""
    length = len(tokens) // batch
    columns = torch.from_numpy(tokens[: length * batch].astype(np.int64)).view(batch, length).T
    with torch.no_grad():
        hidden = model.eval().backbone(columns[:-1], model.initial_state(batch)).hidden
        context, prior_logits = model.head.components(hidden)
        log_prior = torch.log_softmax(prior_logits, -1)
        logits = context @ model.head.weight.T + model.head.bias
        log_prob = torch.logsumexp(log_prior.unsqueeze(-1) + torch.log_softmax(logits, -1), -2)
        tempered = torch.log_softmax(log_prob / temperature, -1)
    return float(-tempered.gather(-1, columns[1:].unsqueeze(-1)).mean())


@pytest.mark.parametrize("head", [Softmax, MixtureOfContexts, MixtureOfSoftmaxes])
@pytest.mark.parametrize("batch", [1, 4])
def test_is_the_definition(head: type[Head], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, temperatures = with_head(head), text(203), (1.0, 0.5, 1.07, 3.0)
    expected = [by_definition(model, tokens, each, batch) for each in temperatures]
    assert len({round(loss, 3) for loss in expected}) == len(expected)
    for block_bytes in (temperature.BLOCK_BYTES, 5 * 17 * 8 + 1, 1):  # a whole segment, five tokens, one at a time
        monkeypatch.setattr(temperature, "BLOCK_BYTES", block_bytes)
        for segment in (0, 7):
            found = evaluate_at(model, tokens, temperatures, batch=batch, segment=segment)
            assert [each.loss_nats for each in found] == pytest.approx(expected, rel=1e-12)
            assert [each.perplexity for each in found] == pytest.approx([math.exp(loss) for loss in expected])
            assert {each.tokens for each in found} == {batch * (203 // batch - 1)}
    assert found[0].loss_nats == pytest.approx(evaluate(model, tokens, batch=batch).loss_nats, rel=1e-12)


def test_it_is_that_of_the_mixture_and_not_of_each_component() -> None:
    model, tokens, at = with_head(MixtureOfSoftmaxes), text(100), 4.0
    assert isinstance(model.head, MixtureOfSoftmaxes)
    [whole] = evaluate_at(model, tokens, [at])
    with torch.no_grad():  # every component's own softmax at that temperature
        model.head.weight.div_(at)
        assert model.head.bias is not None
        model.head.bias.div_(at)
    assert abs(whole.loss_nats - evaluate(model, tokens).loss_nats) > 1e-3  # far above rounding


def test_it_takes_back_a_scale_of_the_logits() -> None:
    """Of one softmax whose logits are c times as large: at temperature c it is what it was, and so is its best loss."""
    model, tokens = with_head(Softmax), text(400)
    # Untied, and words drawn as the model expects them, so that its best temperature lies near 1.
    with torch.no_grad():
        hidden = model.eval().backbone(torch.from_numpy(tokens[:-1, None].astype(np.int64)), model.initial_state(1))
        drawn = torch.multinomial(model.head.log_prob(hidden.hidden[:, 0]).exp(), 1, replacement=True)
    likely = np.concatenate([tokens[:1], drawn[:, 0].numpy().astype(np.int32)])
    before, best = evaluate(model, likely).loss_nats, tune_temperature(model, likely)
    assert model.head.bias is not None
    for scale in (0.5, 1.2, 2.6):
        with torch.no_grad():
            model.head.weight.mul_(scale)
            model.head.bias.mul_(scale)
        assert evaluate_at(model, likely, [scale])[0].loss_nats == pytest.approx(before, rel=1e-12)
        found = tune_temperature(model, likely)
        assert found.temperature == pytest.approx(scale * best.temperature, abs=2e-3 * scale)
        with torch.no_grad():
            model.head.weight.div_(scale)
            model.head.bias.div_(scale)


@pytest.mark.parametrize("head", [Softmax, MixtureOfContexts, MixtureOfSoftmaxes])
def test_what_the_search_finds_is_the_lowest_point(head: type[Head]) -> None:
    model = with_head(head)
    with torch.no_grad():  # about as sure of itself as the text lets it be
        model.head.weight.mul_(0.1)
        model.head.bias.mul_(0.1)  # type: ignore[union-attr]
    tokens = text(500)
    found = tune_temperature(model, tokens, batch=2)
    assert list(found.loss_nats) == sorted(found.loss_nats)
    around = [found.temperature + step for step in (-0.02, -0.002, 0.0, 0.002, 0.02)]
    losses = [each.loss_nats for each in evaluate_at(model, tokens, around, batch=2)]
    if max(found.loss_nats) == found.temperature:  # at the end of what is tried
        assert losses[-1] < losses[2] < losses[0]
    else:
        assert min(losses) == losses[2]
        assert losses[2] <= min(found.loss_nats.values())


def test_a_model_that_expects_nothing_stays_as_it_is() -> None:
    model = small_model()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()  # type: ignore[union-attr]
    assert tune_temperature(model, text(60)).temperature == 1.0


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-4, math.nan, math.inf])
def test_what_is_no_temperature_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match=r"^temperature: expected a number from 0\.001 on, got .*$"):
        evaluate_at(small_model(), text(30), [1.0, bad])


def test_no_temperature_is_refused() -> None:
    with pytest.raises(UserError, match=r"^temperatures: expected one or more$"):
        evaluate_at(small_model(), text(30), [])


def test_the_display_shows_the_best_loss_of_a_search() -> None:
    display, model = Telling(), small_model()
    found = tune_temperature(model, text(60), display=display)
    assert min(loss for loss in display.losses if loss is not None) == pytest.approx(
        min(found.loss_nats.values()), rel=1e-12
    )


def test_a_lost_loss_is_not_tuned() -> None:
    model = small_model()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    with pytest.raises(UserError, match=r"^valid: the loss is nan"):
        tune_temperature(model, text(30), what="valid")


def test_the_mode_comes_back_and_dropouts_are_off() -> None:
    model = small_model(dropout=0.4).train()
    [found] = evaluate_at(model, text(60), [1.3])
    assert found.loss_nats == pytest.approx(evaluate_at(small_model(), text(60), [1.3])[0].loss_nats, rel=1e-12)
    assert all(module.training for module in model.modules())


def test_memory_is_that_of_some_blocks() -> None:
    """Beside what the head needs for one, however long the segment and however many the temperatures."""
    words = 4000
    model, tokens = small_model(words), text(3001, words)
    tokens_a_block = temperature.BLOCK_BYTES // (words * 8)
    hidden = torch.zeros(tokens_a_block, 7, dtype=torch.float64)
    own = memory_of(lambda: model.head.log_prob(hidden)).peak_bytes
    used = memory_of(lambda: evaluate_at(model, tokens, [1.0, 1.1, 1.2, 1.3], batch=4)).peak_bytes
    assert used < own + 1.5 * temperature.BLOCK_BYTES  # the block before is still there
    assert tokens_a_block < 3000 / 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("text")
    words = np.random.default_rng(1).choice(list("abcdefghij"), size=900)
    for split, part in {"train": words[:600], "valid": words[600:750], "test": words[750:]}.items():
        (folder / f"{split}.txt").write_text("\n".join(" ".join(line) for line in part.reshape(-1, 15)) + "\n")
    return load_corpus(folder)


def recorded(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found["train"]


def test_a_run_keeps_one_temperature_apart_from_its_plain_figures(corpus: Corpus, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", corpus)
    evaluate_run(run, corpus, "test")
    plain = recorded(run.path)["test"]
    tuned = evaluate_run_at(run, corpus, "test", "tune")
    model = run.load_model()
    search = tune_temperature(model, corpus.tokens["valid"], batch=run.config.train.valid_batch)
    assert tuned["temperature"] == search.temperature > 1  # weights that were drawn are too sure of themselves
    assert [(each["temperature"], each["loss_nats"]) for each in tuned["search"]] == list(search.loss_nats.items())
    assert tuned["untempered"]["loss_nats"] == pytest.approx(plain["loss_nats"], rel=1e-6)
    assert tuned["perplexity"] < plain["perplexity"]
    kept = recorded(run.path)
    assert kept["test"] == plain
    assert kept["tempered"]["test"]["loss_nats"] == tuned["loss_nats"]
    assert (kept["tempered"]["temperature"], kept["tempered"]["tuned_on"]) == (search.temperature, "valid")

    for split in ("valid", "test"):
        evaluate_run_at(run, corpus, split, 1.1)
    kept = recorded(run.path)["tempered"]
    assert set(kept) == {"temperature", "tuned_on", "valid", "test"}, "the search is of the other temperature"
    assert (kept["temperature"], kept["tuned_on"]) == (1.1, None)
    evaluate_run_at(run, corpus, "test", 1.2, batch=2)
    assert recorded(run.path)["tempered"] == kept, "in columns it is not exact, and not recorded"


def test_the_benchmark_measures_what_the_command_says(corpus: Corpus, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", corpus)
    found = measure(run, str(corpus.folder))
    said = evaluate_run_at(run, corpus, "test", "tune")
    assert found["temperature"] == said["temperature"]
    assert found["test_perplexity"] == {
        "tempered": said["perplexity"],
        "untempered": said["untempered"]["perplexity"],
    }
    assert found["test_gain_nats"] == said["untempered"]["loss_nats"] - said["loss_nats"] > 0


def test_it_is_never_tuned_on_the_text_it_is_told_of(corpus: Corpus, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", corpus)
    with pytest.raises(UserError, match=r"^temperature: one that is tuned on the valid text says nothing there"):
        evaluate_run_at(run, corpus, "valid", "tune")
    assert not (run.path / "results.json").exists()
