"""The mathematics of the original, against the textbook model: same weights, same text, float64, no dropout.

Its three phases (training, fine-tuning, dynamic evaluation) run here by the library's own loop, from a run folder, and
by the textbook's functions; what they leave must be the same numbers.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import textbook
from benchmarks.textbook import TextbookModel
from highrank.data import Corpus, load_corpus
from highrank.data.batches import segment_length
from highrank.evaluate import DynamicSettings, dynamic_evaluate, gradient_statistics
from highrank.models import LanguageModel
from highrank.random import derived_seed
from highrank.runs import Config, RunFolder, build_model, latest_checkpoint, parse_config
from highrank.runs.checkpoint import Checkpoint
from highrank.train import objective, train_stage
from tests.parity import default_dtype, gradients_of, small_model, textbook_names, textbook_twin

LAYERS = 3
NAMES = textbook_names(LAYERS)
VOCAB = 17


def markov(length: int, seed: int) -> NDArray[np.int32]:
    """A text that can be learned: each word is followed by one of three."""
    generator = np.random.default_rng(seed)
    tokens = [0]
    for choice in generator.integers(3, size=length - 1):
        tokens.append((tokens[-1] * 5 + int(choice) * 2 + 1) % VOCAB)
    return np.array(tokens, dtype=np.int32)


def as_text(tokens: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """By name; ``theirs`` by the names of the textbook."""
    assert {NAMES[name] for name in theirs} == ours.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[NAMES[name]], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def of(model: TextbookModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# One pass -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.1, 0.8])
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (12, 4)])
def test_forward_loss_and_every_gradient(spread: float, steps: int, batch: int) -> None:
    model = small_model(spread=spread).train()
    twin = textbook_twin(model).train()
    text = textbook.to_columns(as_text(markov(batch * (2 * steps + 1), 1)), batch)
    state, hidden = model.initial_state(batch), twin.init_hidden(batch)
    for start in (0, steps):  # the second pass begins with the state of the first
        tokens, target = text[start : start + steps], text[start + 1 : start + steps + 1]
        with torch.no_grad():
            log_prob = model.head.log_prob(model.backbone(tokens, state).hidden)
        output, theirs = model(tokens, target, state), twin(tokens, hidden)
        torch.testing.assert_close(log_prob.flatten(0, 1), theirs[0].detach(), rtol=1e-10, atol=1e-12)
        ours_total = objective(output, 2.0, 1.0)
        their_total, nll = textbook.loss(theirs, target, 2.0, 1.0)
        torch.testing.assert_close(output.loss, nll, rtol=1e-11, atol=0)
        torch.testing.assert_close(ours_total, their_total, rtol=1e-11, atol=0)
        model.zero_grad()
        twin.zero_grad()
        ours_total.backward()
        their_total.backward()
        assert_same_weights(gradients_of(model), gradients_of(twin), 1e-11)
        state = [(h.detach(), c.detach()) for h, c in output.state]
        hidden = textbook.detach_hidden(theirs[3])
    torch.testing.assert_close(state, hidden, rtol=1e-10, atol=1e-12)


def test_each_regulariser_counts() -> None:
    model = small_model(spread=0.8)
    tokens = textbook.to_columns(as_text(markov(40, 1)), 4)
    output = model(tokens[:-1], tokens[1:], model.initial_state(4))
    assert objective(output, 0.0, 0.0) is output.loss
    twin = textbook_twin(model)
    for alpha, beta in ((0.7, 0.0), (0.0, 0.7), (0.3, 1.9)):
        theirs, _ = textbook.loss(twin(tokens[:-1], twin.init_hidden(4)), tokens[1:], alpha, beta)
        ours = objective(output, alpha, beta)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0)
        assert ours > output.loss + 1e-3


def test_each_regulariser_takes_its_own_activations() -> None:
    """alpha: the last layer's output after its dropout; beta: the same before it."""
    model = small_model(spread=0.8, dropout=0.4).train()
    tokens = textbook.to_columns(as_text(markov(40, 1)), 4)
    output = model(tokens[:-1], tokens[1:], model.initial_state(4))
    assert not torch.allclose(output.hidden, output.raw)
    uniform = torch.full((36, VOCAB), -np.log(VOCAB), dtype=torch.float64)
    for alpha, beta in ((0.7, 0.0), (0.0, 0.7), (0.3, 1.9)):
        total, nll = textbook.loss((uniform, output.raw, output.hidden, []), tokens[1:], alpha, beta)
        torch.testing.assert_close(objective(output, alpha, beta) - output.loss, total - nll, rtol=1e-11, atol=1e-14)


# Training and fine-tuning ---------------------------------------------------------------------------------------------


SEED, BATCH, BPTT, DELTA = 5, 6, 12, 6


def config_of(micro_batch: int) -> Config:
    """Two epochs of some twenty updates, the second one averaged; the norm is clipped in some updates, not in all."""
    return parse_config(
        {
            "data": {"corpus": "markov"},
            "model": {
                "num_components": 3,
                "embedding_features": 6,
                "hidden_features": 9,
                "last_hidden_features": 7,
                "num_layers": LAYERS,
            },
            "dropout": dict.fromkeys(("embedding", "input", "hidden", "output", "context", "weight"), 0.0),
            "train": {
                "seed": SEED,
                "epochs": 2,
                "average_from": 2,
                "batch": BATCH,
                "micro_batch": micro_batch,
                "bptt": BPTT,
                "max_length_delta": DELTA,
                "lr": 20.0,
                "clip": 0.15,
                "alpha": 1.0,
                "beta": 1.0,
                "weight_decay": 1e-3,
                "valid_batch": 3,
            },
            "finetune": {"epochs": 1, "lr": 5.0},
        },
        source="test",
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Of such a length that twenty segments leave one prediction a column, which the original leaves out."""
    folder = tmp_path_factory.mktemp("markov")
    for split, length, seed in (("train", 1510, 1), ("valid", 200, 2), ("test", 300, 3)):
        words = [f"w{number}" for number in markov(length, seed)]
        lines = [" ".join(words[start : start + 11]) for start in range(0, length, 11)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = load_corpus(folder)
    twenty = sum(segment_length(derived_seed(SEED, "train"), step, BPTT, DELTA) for step in range(20))
    train = corpus.tokens["train"][: BATCH * (twenty + 2) + 3]
    assert len(train) < len(corpus.tokens["train"])
    return replace(corpus, tokens={**corpus.tokens, "train": train})


class Stage(NamedTuple):
    """What a stage left: figures, history of validation losses, checkpoint, best model, and the lengths of segments."""

    figures: dict[str, object]
    history: list[float]
    last: Checkpoint
    best: LanguageModel


def our_stage(run: RunFolder, stage: str, corpus: Corpus) -> Stage:
    run.stage_folder(stage).mkdir(exist_ok=True)
    figures = train_stage(run, stage, corpus)
    last = latest_checkpoint(run.stage_folder(stage), notice=pytest.fail)
    assert last is not None
    return Stage(figures, last.state["position"]["history"], last, run.load_model(stage))


class TextbookStage(NamedTuple):
    history: list[float]
    averages: dict[str, Tensor]
    steps: int
    clipped: int
    lengths: list[int]
    left_out: int  # predictions at the end of a column, in all epochs


def textbook_stage(
    twin: TextbookModel, config: Config, corpus: Corpus, *, stage: str, epochs: int, lr: float, average_from: int
) -> TextbookStage:
    """The original's loop, from its description: one optimizer, then another, over the text again and again."""
    train = config.train
    groups = train.batch // config.micro_batch
    text = textbook.to_columns(as_text(corpus.tokens["train"]), train.batch)
    options = {"lr": lr, "weight_decay": train.weight_decay}
    optimizer: torch.optim.Optimizer = torch.optim.SGD(twin.parameters(), **options)
    history, lengths, step, clipped, left_out = [], [], 0, 0, 0
    for epoch in range(1, epochs + 1):
        if epoch == average_from:
            optimizer = torch.optim.ASGD(twin.parameters(), t0=0, lambd=0.0, **options)
        hidden = [twin.init_hidden(config.micro_batch) for _ in range(groups)]
        start = 0
        while start < len(text) - 2:
            drawn = segment_length(derived_seed(train.seed, stage), step, train.bptt, train.max_length_delta)
            stop = min(start + drawn, len(text) - 1)
            _, hidden = textbook.accumulated_step(
                twin,
                optimizer,
                text[start:stop],
                text[start + 1 : stop + 1],
                hidden,
                lr=lr,
                seq_len=drawn,
                bptt=train.bptt,
                alpha=train.alpha,
                beta=train.beta,
                clip=train.clip,
            )
            norm = torch.stack([p.grad.norm() for p in twin.parameters() if p.grad is not None]).norm()
            clipped += bool(norm > 0.9999 * train.clip)
            lengths.append(stop - start)
            start, step = stop, step + 1
        left_out += len(text) - 1 - start
        with textbook.averaged_weights(optimizer):
            history.append(textbook.evaluate(twin, as_text(corpus.tokens["valid"]), batch=train.valid_batch))
            averages = of(twin)
    return TextbookStage(history, averages, step, clipped, lengths, left_out)


@pytest.mark.parametrize("micro_batch", [6, 2], ids=["all columns at once", "accumulated"])
def test_training_and_fine_tuning(micro_batch: int, corpus: Corpus, tmp_path: Path) -> None:
    config = config_of(micro_batch)
    train = config.train
    with default_dtype(torch.float64):
        run = RunFolder.create(tmp_path / "run", config, corpus.vocabulary, corpus)
        twin = textbook_twin(build_model(config, len(corpus.vocabulary)))
        start = of(twin)
        ours = our_stage(run, "train", corpus)
        theirs = textbook_stage(twin, config, corpus, stage="train", epochs=2, lr=train.lr, average_from=2)

        # There is something to compare: lengths vary, a prediction is left out, the norm is clipped, the weights move.
        assert theirs.steps == ours.figures["updates"] >= 39
        assert len(set(theirs.lengths)) > 5
        assert theirs.left_out == 1
        assert 0 < theirs.clipped < theirs.steps
        assert theirs.history[0] > theirs.history[1]
        name = "rnns.1.module.weight_hh_l0_raw"
        assert (start[name] - of(twin)[name]).abs().max() > 1e-2
        assert (theirs.averages[name] - of(twin)[name]).abs().max() > 1e-3

        assert ours.history == pytest.approx(theirs.history, rel=1e-9)
        assert_same_weights(ours.last.model, of(twin), 1e-9)
        averages = {
            key.removeprefix("average."): x for key, x in ours.last.tensors.items() if key.startswith("average.")
        }
        assert_same_weights(averages, theirs.averages, 1e-9)
        assert ours.figures["best_epoch"] == 2
        assert ours.figures["valid_loss_nats"] == ours.history[1]
        assert_same_weights(dict(ours.best.named_parameters()), theirs.averages, 1e-9)  # the averages are what is saved

        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                parameter.copy_(theirs.averages[name])
        tuned = our_stage(run, "finetune", corpus)
        theirs = textbook_stage(twin, config, corpus, stage="finetune", epochs=1, lr=5.0, average_from=1)
        assert theirs.steps == tuned.figures["updates"]
        assert theirs.history[0] < ours.history[1]  # better than what it began with, so saved
        assert tuned.history == pytest.approx(theirs.history, rel=1e-9)
        assert_same_weights(tuned.last.model, of(twin), 1e-9)
        assert_same_weights(dict(tuned.best.named_parameters()), theirs.averages, 1e-9)


# Dynamic evaluation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    """A model that has learned something of the text, so that its gradients differ in size."""
    model = small_model(spread=0.3).train()
    columns = textbook.to_columns(as_text(markov(4001, 1)), 20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model(columns[:20], columns[1:21], model.initial_state(20)).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("mean_square", [False, True])
@pytest.mark.parametrize(
    ("train_tokens", "batch"),
    [(3000, 20), (2620, 20), (2640, 20)],
    ids=["a last segment of 4", "a last segment of 5", "a last segment of 1, left out"],
)
def test_gradient_statistics(trained: LanguageModel, mean_square: bool, train_tokens: int, batch: int) -> None:
    text, twin = markov(train_tokens, 1), textbook_twin(trained)
    rms = textbook.dynamic_statistics(twin, as_text(text), batch=batch, mean_square=mean_square)
    ours = gradient_statistics(trained, text, batch=batch).rms(mean_square=mean_square)
    assert_same_weights(ours, dict(zip(of(twin), rms, strict=True)), 1e-10)


@pytest.mark.parametrize(
    ("settings", "tokens", "clamped"),
    [
        (DynamicSettings(lamb=0.02, lr=0.002, epsilon=0.001), 2003, False),
        (DynamicSettings(lamb=0.075, lr=0.002, epsilon=0.001, mean_square=True), 404, False),
        (DynamicSettings(lamb=3.0, lr=0.01, epsilon=0.002), 405, True),
        (DynamicSettings(lamb=0.0, lr=0.004, epsilon=0.01), 406, False),
        (DynamicSettings(lamb=0.02, lr=0.002, epsilon=0.001, bptt=7), 407, False),
    ],
    ids=[
        "the paper's",
        "mean square",
        "decay at its bound",
        "no decay, a last segment of 5",
        "other segments, a last one of 1",
    ],
)
def test_dynamic_evaluation(trained: LanguageModel, settings: DynamicSettings, tokens: int, clamped: bool) -> None:
    twin, train, test = textbook_twin(trained), markov(3000, 1), markov(tokens, 9)
    test[100:] = (test[100:] * 3) % VOCAB  # another language from here on: there is something to learn
    rms = textbook.dynamic_statistics(twin, as_text(train), batch=20, mean_square=settings.mean_square)
    share = torch.cat([(r / sum(float(s.mean()) for s in rms)).flatten() for r in rms])
    assert bool((share * settings.lamb > 1).any()) == clamped
    static = textbook.evaluate(twin, as_text(test))
    expected = textbook.dynamic_evaluate(
        twin, as_text(test), rms, lamb=settings.lamb, lr=settings.lr, epsilon=settings.epsilon, bptt=settings.bptt
    )
    assert abs(expected - static) > 1e-3  # a million times what is allowed below

    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    statistics = gradient_statistics(trained, train, batch=20)
    evaluation = dynamic_evaluate(trained, test, statistics, settings)
    assert evaluation.loss_nats == pytest.approx(expected, rel=1e-9)
    assert evaluation.tokens == tokens - 1
    assert evaluation.perplexity == pytest.approx(np.exp(expected), rel=1e-8)
    for name, parameter in trained.named_parameters():  # the weights are as they were
        assert torch.equal(parameter, before[name])


def test_dynamic_evaluation_has_every_dropout_off() -> None:
    """In whatever mode the model comes, and DropConnect too: the original forgot it."""
    dropped, plain = small_model(dropout=0.4), small_model()
    train, test = markov(600, 1), markov(201, 2)
    settings = DynamicSettings()
    expected = gradient_statistics(plain, train, batch=20)
    loss = dynamic_evaluate(plain, test, expected, settings).loss_nats
    for training in (True, False):
        dropped.train(training)
        statistics = gradient_statistics(dropped, train, batch=20)
        torch.testing.assert_close(dict(statistics.squares), dict(expected.squares), rtol=1e-12, atol=0)
        assert dynamic_evaluate(dropped, test, statistics, settings).loss_nats == pytest.approx(loss, rel=1e-12)
        assert dropped.training == training
    kept = dynamic_evaluate(dropped, test, expected, settings._replace(weight_dropout_seed=1)).loss_nats
    assert kept != pytest.approx(loss, rel=1e-6)  # a million times what is allowed above
    assert dynamic_evaluate(dropped, test, expected, settings._replace(weight_dropout_seed=1)).loss_nats == kept
    assert dynamic_evaluate(dropped, test, expected, settings._replace(weight_dropout_seed=2)).loss_nats != kept
