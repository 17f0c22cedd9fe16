"""The neural cache against its definition, word by word."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.processes import here, one_line
from highrank.cli.main import main
from highrank.data import load_corpus
from highrank.errors import UserError
from highrank.evaluate import DEFAULT_WINDOW, CacheSettings, evaluate, evaluate_with_cache, held_out, tune_cache
from highrank.models import LanguageModel
from highrank.runs import RunFolder
from tests.parity import small_model
from tests.untrained import make_run

SETTINGS = CacheSettings(window=7, theta=0.8, share=0.3)


def text(length: int = 60) -> NDArray[np.int32]:
    """Of few words, so that they come again."""
    return np.random.default_rng(3).integers(6, size=length).astype(np.int32)


def by_the_definition(model: LanguageModel, tokens: NDArray[np.int32], settings: CacheSettings) -> float:
    words = tokens.tolist()
    with torch.no_grad():
        hidden = model.backbone(torch.tensor(words[:-1]).unsqueeze(1), model.initial_state(1)).hidden[:, 0]
        p_model = model.head.log_prob(hidden).exp()
    total = 0.0
    for now in range(len(words) - 1):
        p = float(p_model[now, words[now + 1]])
        places = range(max(0, now - settings.window), now)
        if places:
            likeness = torch.stack([settings.theta * hidden[now] @ hidden[place] for place in places])
            same = torch.tensor([words[place + 1] == words[now + 1] for place in places])
            p = (1 - settings.share) * p + settings.share * float(torch.softmax(likeness, 0)[same].sum())
        total -= math.log(p)
    return total / (len(words) - 1)


@pytest.mark.parametrize("settings", [SETTINGS, CacheSettings(1, 2.0, 0.01), CacheSettings(1000, 0.05, 0.9)], ids=str)
@pytest.mark.parametrize("segment", [1024, 13, 1])
def test_the_definition(settings: CacheSettings, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "SEGMENT", segment)
    model = small_model().eval()
    with_it, without = evaluate_with_cache(model, text(), settings)
    assert with_it.loss_nats == pytest.approx(by_the_definition(model, text(), settings), rel=1e-10)
    assert without.loss_nats == pytest.approx(evaluate(model, text()).loss_nats, rel=1e-10)
    assert with_it.tokens == without.tokens == 59


def test_tuning_takes_the_best_of_its_grid() -> None:
    model = small_model()
    settings, loss = tune_cache(model, text(), window=7)
    assert settings.window == 7
    assert loss == pytest.approx(evaluate_with_cache(model, text(), settings)[0].loss_nats, rel=1e-10)
    for other in (SETTINGS, SETTINGS._replace(theta=0.05, share=0.01), SETTINGS._replace(theta=5.0, share=0.4)):
        if other.theta in (0.05, 5.0):  # of the grid
            assert loss <= evaluate_with_cache(model, text(), other)[0].loss_nats


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 0}, "window: expected at least 1"),
        ({"theta": 0.0}, "theta: expected a number above 0, got 0.0"),
        ({"theta": math.nan}, "theta: expected a number above 0, got nan"),
        ({"share": 1.0}, "share: expected a number from 0 to below 1, got 1.0"),
        ({"share": math.nan}, "share: expected a number from 0 to below 1, got nan"),
    ],
)
def test_settings_out_of_their_range(change: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate_with_cache(small_model(), text(), SETTINGS._replace(**change))


def test_the_default_window_is_the_one_that_the_help_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache-eval", "--help"])  # which imports no PyTorch, so not the constant either
    assert f"positions in the cache (default: {DEFAULT_WINDOW})" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def run(small_text: Path, tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", load_corpus(small_text))


def test_a_run_is_tuned_evaluated_and_recorded(run: RunFolder, small_text: Path) -> None:
    options = (run.path, "--data", small_text, "--device", "cpu")
    done = here("cache-eval", *options, "--window", "50")
    assert done.returncode == 0, done.stderr
    recorded = RunFolder.open(run.path).results["train"]["cache"]
    assert (recorded["window"], recorded["tuned_on"], "valid" in recorded) == (50, "valid", False)
    assert f"test: perplexity {recorded['test']['perplexity']:.2f}" in done.stdout
    assert f"theta {recorded['theta']:g}, share {recorded['share']:g}, tuned on valid; without: " in done.stdout
    for split in ("valid", "test"):  # other settings take their place, the second split stands beside the first
        assert here("cache-eval", *options, "--theta", "1", "--share", "0.1", "--split", split).returncode == 0
    recorded = RunFolder.open(run.path).results["train"]["cache"]
    assert (recorded["window"], recorded["theta"], recorded["share"], recorded["tuned_on"]) == (500, 1.0, 0.1, None)
    assert {"valid", "test"} <= set(recorded)


def test_what_cannot_be_evaluated(run: RunFolder, small_text: Path) -> None:
    options = ("cache-eval", run.path, "--data", small_text)
    one_line(here(*options, "--theta", "1"), "theta and share: expected both, or neither", codes=(2,))
    one_line(here(*options, "--split", "valid"), "tuned on the valid text they say nothing there", codes=(2,))
    one_line(here(*options, "--theta", "0", "--share", "0.1"), "theta: expected a number above 0", codes=(2,))
    assert "cache" not in RunFolder.open(run.path).results.get("train", {})
