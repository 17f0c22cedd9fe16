"""The components of a mixture against brute force, one token at a time from the definition, and what they mean."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from highrank.data import Corpus, load_corpus
from highrank.errors import UserError
from highrank.evaluate import components_run, evaluate, rank_run
from highrank.evaluate.bands import equal_bands, fixed_bands, over_bands
from highrank.evaluate.components import component_differences, mixed, text_statistics
from highrank.heads import MixtureOfSoftmaxes
from highrank.models import LanguageModel
from highrank.runs.tensors import model_tensors
from tests.parity import small_model
from tests.untrained import make_run

K, V = 4, 17


def text(length: int, seed: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(V, size=length, dtype=np.int32)


def distributions(model: LanguageModel, tokens: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Priors (N, K) and components' probabilities (N, K, V), from the paper's formula and the head's own weights."""
    head = model.head
    assert isinstance(head, MixtureOfSoftmaxes)
    with torch.no_grad():
        column = torch.from_numpy(tokens[:-1].astype(np.int64)).unsqueeze(1)
        hidden = model.backbone(column, model.initial_state(1)).hidden[:, 0]
        prior = torch.softmax(hidden @ head.prior.weight.T, -1)
        contexts = torch.tanh(hidden @ head.projection.weight.T + head.projection.bias).view(len(hidden), K, -1)
        probability = torch.softmax(contexts @ head.weight.T + head.bias, -1)
    return prior.numpy(), probability.numpy()


def test_statistics_are_those_of_brute_force() -> None:
    model, tokens = small_model(), text(1200)  # more than a segment
    found = text_statistics(model, tokens, contexts=50)
    prior, probability = distributions(model, tokens)
    for n, target in enumerate(tokens[1:]):
        joint = [prior[n, k] * probability[n, k, target] for k in range(K)]
        assert found.loss[n] == pytest.approx(-math.log(sum(joint)), rel=1e-9)
        assert found.posterior[n].tolist() == pytest.approx([j / sum(joint) for j in joint], rel=1e-8)
        assert found.component_loss[n].tolist() == pytest.approx(
            (-np.log(probability[n, :, target])).tolist(), rel=1e-9
        )
        assert found.prior_entropy[n] == pytest.approx(-sum(p * math.log(p) for p in prior[n]), rel=1e-9)
        assert (found.target[n], found.previous[n]) == (target, tokens[n])
    np.testing.assert_allclose(found.prior, prior, rtol=1e-9)
    assert len(found.positions) == len(found.hidden) == 50
    here = mixed(model.head, found.hidden)
    np.testing.assert_allclose(here.component_log_prob.exp().numpy(), probability[found.positions], rtol=1e-8)
    np.testing.assert_allclose(
        here.log_prob.exp().numpy(), (prior[..., None] * probability).sum(1)[found.positions], rtol=1e-8
    )


def test_differences_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("highrank.evaluate.components.BLOCK_BYTES", 8 * K * V * 3)
    model, tokens = small_model(spread=1.0), text(40)
    found = component_differences(model.head, text_statistics(model, tokens, contexts=39).hidden)
    prior, probability = distributions(model, tokens)

    def kl(p: NDArray[Any], q: NDArray[Any]) -> float:
        return float((p * np.log(p / q)).sum())

    for i in range(K):
        for j in range(K):
            values = []
            for p in probability:
                middle = (p[i] + p[j]) / 2
                values.append((kl(p[i], middle) + kl(p[j], middle)) / 2)
            assert float(found.jensen_shannon[i, j]) == pytest.approx(np.mean(values), rel=1e-8, abs=1e-14)
    for n, p in enumerate(probability):
        mixture = prior[n] @ p
        expected = sum(prior[n, k] * kl(p[k], mixture) for k in range(K))
        assert float(found.information[n]) == pytest.approx(expected, rel=1e-7)


def permuted(model: LanguageModel, order: list[int]) -> LanguageModel:
    """The same model with its components in another order."""
    twin = small_model(spread=1.0)
    head, old = twin.head, model.head
    assert isinstance(head, MixtureOfSoftmaxes)
    assert isinstance(old, MixtureOfSoftmaxes)
    rows = torch.cat([torch.arange(k * 6, k * 6 + 6) for k in order])
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
        head.prior.weight.copy_(old.prior.weight[order])
        head.projection.weight.copy_(old.projection.weight[rows])
        assert head.projection.bias is not None
        head.projection.bias.copy_(old.projection.bias[rows])
    return twin


def test_another_order_of_components_is_another_order_of_figures() -> None:
    model, tokens, order = small_model(spread=1.0), text(200), [2, 0, 3, 1]
    twin = permuted(model, order)
    one, other = (text_statistics(each, tokens, contexts=20) for each in (model, twin))
    np.testing.assert_allclose(other.loss, one.loss, rtol=1e-10)
    np.testing.assert_allclose(other.posterior, one.posterior[:, order], rtol=1e-8)
    np.testing.assert_allclose(other.prior_entropy, one.prior_entropy, rtol=1e-10)
    first, second = (component_differences(m.head, s.hidden) for m, s in ((model, one), (twin, other)))
    torch.testing.assert_close(second.jensen_shannon, first.jensen_shannon[order][:, order])
    torch.testing.assert_close(second.information, first.information)


@pytest.mark.parametrize("batch", [1, 3])
def test_evaluation_tells_the_use_of_components(batch: int) -> None:
    model, tokens = small_model(spread=1.0), text(300)
    use = evaluate(model, tokens, batch=batch, segment=7).components
    columns = tokens.reshape(batch, -1)
    parts = [text_statistics(model, column) for column in columns]
    assert use is not None
    assert use.mean_prior == pytest.approx(np.concatenate([p.prior for p in parts]).mean(0), abs=1e-9)
    assert use.mean_posterior == pytest.approx(np.concatenate([p.posterior for p in parts]).mean(0), abs=1e-9)
    assert use.prior_entropy_nats == pytest.approx(np.concatenate([p.prior_entropy for p in parts]).mean(), abs=1e-9)


def test_bands() -> None:
    values = np.array([0, 7, 1, 12, 9, 10, 100])
    fixed = fixed_bands(values, (0, 1, 10, 50, 60))
    assert [(low, high, values[where].tolist()) for low, high, where in fixed] == [
        (0, 0, [0]),
        (1, 9, [7, 1, 9]),
        (10, 49, [12, 10]),
        (60, None, [100]),
    ]
    equal = equal_bands(values, 3)
    assert [(low, high, len(where)) for low, high, where in equal] == [(0, 7, 3), (9, 10, 2), (12, 100, 2)]
    assert len(equal_bands(np.zeros(2), 5)) == 2
    rows = over_bands(equal, half=values / 2)
    assert rows[1] == {"from": 9, "to": 10, "tokens": 2, "half": 4.75}
    json.dumps(rows)


WORDS = [f"w{n}" for n in range(12)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Lines of different lengths, and words of very different frequencies."""
    generator = np.random.default_rng(5)
    folder = tmp_path / "text"
    folder.mkdir()
    weights = 0.5 ** np.arange(len(WORDS))
    for split, lines in (("train", 200), ("valid", 30), ("test", 40)):
        drawn = [generator.choice(WORDS, generator.integers(1, 40), p=weights / weights.sum()) for _ in range(lines)]
        first = [WORDS] if split == "train" else []
        (folder / f"{split}.txt").write_text("".join(" ".join(line) + "\n" for line in [*first, *drawn]))
    return load_corpus(folder)


def keys(value: Any) -> Any:
    """The layout of JSON: names, and of a list that of its first entry."""
    if isinstance(value, dict):
        return {name: keys(part) for name, part in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return None


ROWS = [dict.fromkeys(("from", "to", "tokens", "mean_nats"))]
GAIN_ROWS = [dict.fromkeys(("from", "to", "tokens", "loss_nats", "other_loss_nats", "gain_nats"))]
GAIN = {
    "loss_nats": None,
    "gain_nats": None,
    **{f"by_{name}": GAIN_ROWS for name in ("target_frequency", "line_position", "text_position", "prior_entropy")},
}
ENTROPY = {"mean_nats": None, "largest_nats": None, "quantiles": [{"quantile": None, "nats": None}]}
LAYOUT = {
    **dict.fromkeys(("format", "stage", "split", "model_sha256", "head", "num_components", "context_features")),
    **dict.fromkeys(("vocabulary", "tokens", "loss_nats", "perplexity", "dead_below")),
    "dead": [],
    "components": [
        dict.fromkeys(("component", "mean_prior", "mean_posterior", "dead", "most_likely", "loss_nats"))
        | {"words": [dict.fromkeys(("word", "log_ratio", "occurrences"))]}
    ],
    "prior_entropy": ENTROPY | {"by_previous_frequency": ROWS, "by_line_position": ROWS, "by_text_position": ROWS},
    "posterior_entropy": ENTROPY,
    "posterior": {"sorted_mean": [None], "share_below": [{"threshold": None, "share": None}]},
    "divergence": {
        **dict.fromkeys(("measure", "contexts", "largest_nats", "information_nats")),
        "mean_nats": [[None]],
    },
    "contexts": [
        {
            **dict.fromkeys(("position", "target", "information_nats")),
            **{name: [None] for name in ("text", "prior", "posterior")},
            "mixture": [dict.fromkeys(("word", "probability"))],
            "components": [[dict.fromkeys(("word", "probability", "log_ratio"))]],
        }
    ],
    "gain": {
        "best_component": {"component": None} | GAIN,
        "likeliest_component": GAIN,
        "control": dict.fromkeys(("run", "stage", "head")) | GAIN,
    },
    **dict.fromkeys(("dtype", "device", "elapsed_s")),
}


def test_what_is_kept_of_a_run(tmp_path: Path, corpus: Corpus) -> None:
    run, control = make_run(tmp_path / "run", corpus), make_run(tmp_path / "control", corpus, "softmax")
    result = components_run(run, corpus, "test", control=control)
    kept = json.loads((tmp_path / "run" / "components.json").read_text())
    assert {"run": str(run.path)} | kept == result
    assert keys(kept) == LAYOUT
    assert kept["tokens"] == len(corpus.tokens["test"]) - 1
    exact = evaluate(run.load_model(), corpus.tokens["test"])
    assert kept["loss_nats"] == pytest.approx(exact.loss_nats, rel=1e-6)
    for name in ("mean_prior", "mean_posterior", "most_likely"):
        assert sum(each[name] for each in kept["components"]) == pytest.approx(1, abs=1e-5)
    assert sum(kept["posterior"]["sorted_mean"]) == pytest.approx(1, abs=1e-5)
    gain = kept["gain"]
    alone = [each["loss_nats"] for each in kept["components"]]
    assert gain["best_component"]["component"] == int(np.argmin(alone))
    assert gain["best_component"]["loss_nats"] == min(alone)
    other = evaluate(control.load_model(), corpus.tokens["test"])
    assert gain["control"]["loss_nats"] == pytest.approx(other.loss_nats, rel=1e-6)
    for each in gain.values():
        assert each["gain_nats"] == pytest.approx(each["loss_nats"] - kept["loss_nats"], abs=1e-6)
        for name in GAIN.keys() - {"loss_nats", "gain_nats"}:
            rows = each[name]
            assert sum(row["tokens"] for row in rows) == kept["tokens"]
            assert sum(row["tokens"] * row["gain_nats"] for row in rows) == pytest.approx(
                kept["tokens"] * each["gain_nats"], abs=1e-4
            )
            assert all(a["from"] <= b["from"] for a, b in pairwise(rows))


def test_words_and_bands_are_those_of_brute_force(tmp_path: Path, corpus: Corpus) -> None:
    run = make_run(tmp_path / "run", corpus)
    result = components_run(run, corpus, "valid")
    words = corpus.vocabulary.decode(corpus.tokens["valid"])
    found = text_statistics(run.load_model(), corpus.tokens["valid"])
    targets = words[1:]
    for k, component in enumerate(result["components"]):
        ratios = {
            word: np.mean([found.loss[n] - found.component_loss[n, k] for n, t in enumerate(targets) if t == word])
            for word in set(targets)
            if targets.count(word) >= 5
        }
        expected = sorted(ratios, key=lambda word: -ratios[word])[:10]
        assert [entry["word"] for entry in component["words"]] == expected
        assert component["words"][0]["log_ratio"] == pytest.approx(ratios[expected[0]])
        assert component["words"][0]["occurrences"] == targets.count(expected[0])
    places: dict[int, list[float]] = {}
    place = 1  # the text's first word is not predicted
    for n, previous in enumerate(words[:-1]):
        place = 0 if previous == "<eos>" else place if n == 0 else place + 1
        places.setdefault(place, []).append(found.prior_entropy[n])
    rows = result["prior_entropy"]["by_line_position"]
    for row in rows:
        inside = [e for p, es in places.items() if row["from"] <= p <= (row["to"] or row["from"] or 0) for e in es]
        if row["to"] is not None:
            assert row["tokens"] == len(inside)
            assert row["mean_nats"] == pytest.approx(np.mean(inside))
    counts = np.bincount(corpus.tokens["train"], minlength=len(corpus.vocabulary))
    for row in result["prior_entropy"]["by_previous_frequency"]:
        inside = [
            found.prior_entropy[n]
            for n, token in enumerate(corpus.tokens["valid"][:-1])
            if row["from"] <= counts[token] <= row["to"]
        ]
        assert (row["tokens"], row["mean_nats"]) == (len(inside), pytest.approx(np.mean(inside)))


def test_a_dead_component_is_found(tmp_path: Path, corpus: Corpus) -> None:
    run = make_run(tmp_path / "run", corpus)
    assert components_run(run, corpus, "valid")["dead"] == []
    model = run.load_model()
    assert isinstance(model.head, MixtureOfSoftmaxes)
    with torch.no_grad():  # gates wide open make every hidden state tanh(1), so the prior's weight decides
        lstm = model.backbone.layers[0].lstm
        assert isinstance(lstm, torch.nn.LSTM)
        for name, parameter in lstm.named_parameters():
            parameter.zero_()
            if name == "bias_ih_l0":
                input_forget_cell_output = torch.tensor([[20.0], [-20.0], [20.0], [20.0]])
                parameter.view(4, -1).copy_(input_forget_cell_output)
        model.head.prior.weight.zero_()
        model.head.prior.weight[1] = -3
    run.save_best("train", model_tensors(model))
    result = components_run(run, corpus, "valid")
    means = [each["mean_posterior"] for each in result["components"]]
    assert [each["dead"] for each in result["components"]] == [mean < 0.01 / 3 for mean in means]
    assert result["dead"] == [1]


@pytest.mark.parametrize(
    ("head", "words"),
    [("softmax", "one softmax, which has no components"), ("mixture-of-contexts", "no distributions of their own")],
)
def test_a_head_without_components_is_one_clear_line(tmp_path: Path, corpus: Corpus, head: str, words: str) -> None:
    run = make_run(tmp_path / "run", corpus, head)
    with pytest.raises(UserError, match=words):
        components_run(run, corpus, "test")
    assert not (tmp_path / "run" / "components.json").exists()


def test_a_control_of_another_vocabulary_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    run = make_run(tmp_path / "run", corpus)
    other = make_run(tmp_path / "other", replace(corpus, vocabulary=type(corpus.vocabulary)(("<eos>", *WORDS))))
    with pytest.raises(UserError, match=r"other: another vocabulary than that of \S+run \(.+\), so losses"):
        components_run(run, corpus, "test", control=other)


RANK_LAYOUT = {
    *("format", "stage", "split", "model_sha256", "head", "num_components", "context_features", "bound"),
    *("contexts", "vocabulary", "numerical_rank", "threshold", "precision", "effective_rank", "mean_kl_nats", "ranks"),
    *("dtype", "hidden_dtype", "device", "elapsed_s", "singular_values"),
}


def test_the_rank_of_runs(tmp_path: Path, corpus: Corpus) -> None:
    for head, bound in (("softmax", 7), ("mixture-of-contexts", 7), ("mixture-of-softmaxes", None)):
        run = make_run(tmp_path / head, corpus, head)
        result = rank_run(run, corpus)
        kept = json.loads((tmp_path / head / "rank.json").read_text())
        assert {"run": str(run.path)} | kept == result
        assert kept.keys() == RANK_LAYOUT
        assert kept["contexts"] == kept["vocabulary"] == len(corpus.vocabulary) == len(kept["singular_values"])
        assert (kept["dtype"], kept["hidden_dtype"], kept["precision"]) == ("float64", "float32", "float64")
        assert kept["bound"] == bound
        assert kept["numerical_rank"] == (bound or 13)
        assert rank_run(run, corpus, "valid", contexts=9)["contexts"] == 9


def test_a_text_of_fewer_contexts_than_words(tmp_path: Path, corpus: Corpus) -> None:
    run = make_run(tmp_path / "run", corpus)
    short = replace(corpus, tokens={**corpus.tokens, "test": corpus.tokens["test"][:8]})
    assert rank_run(run, short)["contexts"] == 7
    with pytest.raises(UserError, match=r": test: 7 contexts, fewer than the 8 that were asked for"):
        rank_run(run, short, contexts=8)
    with pytest.raises(UserError, match="at least 2 contexts, got 1"):
        rank_run(run, short, contexts=1)


def test_a_stage_without_a_model_is_one_clear_line(tmp_path: Path, corpus: Corpus) -> None:
    run = make_run(tmp_path / "run", corpus)
    for measure in (rank_run, components_run):
        with pytest.raises(UserError, match="the stage 'finetune' has no model yet"):
            measure(run, corpus, "test", stage="finetune")
