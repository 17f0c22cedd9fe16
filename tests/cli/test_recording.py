"""What is measured of a run is recorded of the model it was measured on, or not at all; and it is always told."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from benchmarks.processes import RECIPE, here
from highrank.errors import UserError
from highrank.evaluate import components_run, dynamic_evaluate_run, of_run, rank_of_run, rank_run
from highrank.evaluate.adaptation import GradientStatistics
from highrank.evaluate.of_run import cached_statistics, dynamic_settings, known_statistics
from highrank.progress import SILENT
from highrank.runs import RunFolder
from highrank.runs.tensors import read_tensors
from highrank.train import corpus_of
from tests.telling import Telling


@pytest.fixture
def run(run: Path) -> RunFolder:
    return RunFolder.open(run)


def another_model(run: RunFolder) -> None:
    """As a training beside it finds a better one."""
    tensors = read_tensors(run.best_model_path("finetune"))
    run.save_best("finetune", {name: tensor * 0.5 for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--split", "valid"],
        ["evaluate", "--temperature", "1.1"],
        ["dynamic-eval", "--lr", "0.003"],
        ["rank", "--contexts", "50"],
        ["components"],
    ],
    ids=lambda command: " ".join(command),
)
def test_figures_that_cannot_be_recorded_are_told(command: list[str], run: RunFolder) -> None:
    before = run.results
    (run.path / ".writing").unlink()
    (run.path / ".writing").mkdir()  # in the place of the lock
    done = here(command[0], run.path, *command[1:], "--json", "--device", "cpu")
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"highrank: not recorded: {run.path}: ")
    found = json.loads(done.stdout)
    [found] = found.get("runs", [found])
    assert {"perplexity", "test", "numerical_rank"} & set(found)
    assert run.results == before
    assert not (run.path / "rank.json").exists()
    assert not (run.path / "components.json").exists()


def test_a_whole_recipe_computes_what_is_missing_and_tells_what_cannot_be_recorded(
    run: RunFolder, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> NoReturn:
        raise UserError(f"{path}: no space left")

    settings = dynamic_settings(run)
    # In the place of any other.
    dynamic_evaluate_run(run, corpus_of(run, None), ("valid",), settings._replace(lr=0.001))
    dynamic_evaluate_run(run, corpus_of(run, None), ("valid",), settings)
    monkeypatch.setattr(of_run, "writing", full)
    done = here("run", RECIPE, "--data", small_text, "--out", run.path, "--resume", "--json", "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, "")
    *_, told, said = done.stderr.strip().splitlines()
    assert said == f"highrank: not recorded: {run.path}: no space left"
    assert {"valid", "test"} & set(json.loads(told)) == {"test"}


def test_ranks_and_components_are_of_the_model_that_was_measured(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, told = corpus_of(run, None), Telling()
    measure = rank_of_run.measure_rank

    def meanwhile(matrix: torch.Tensor, **how: Any) -> Any:
        another_model(run)
        return measure(matrix, **how)

    before = rank_run(run, corpus, contexts=50)
    monkeypatch.setattr(rank_of_run, "measure_rank", meanwhile)
    found = rank_run(run, corpus, contexts=50, display=told)
    assert found["model_sha256"] == before["model_sha256"] != run.model_stamp("finetune").sha256
    assert found["mean_kl_nats"] == before["mean_kl_nats"]
    assert [line for line in told.messages if "newer model of finetune than the one that was measured" in line]
    recorded = json.loads((run.path / "rank.json").read_text())
    assert recorded["elapsed_s"] == before["elapsed_s"], "the first one stands"
    assert components_run(run, corpus)["model_sha256"] == run.model_stamp("finetune").sha256


def test_a_model_is_stamped_before_it_is_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    load, before = RunFolder.load_model, run.model_stamp("finetune")

    def meanwhile(run: RunFolder, *stage: str, **how: Any) -> Any:
        another_model(run)
        return load(run, *stage, **how)

    monkeypatch.setattr(RunFolder, "load_model", meanwhile)
    stamp, _ = run.stamped_model()
    assert stamp == before != run.model_stamp("finetune")


def test_gradient_statistics_are_of_the_model_that_was_loaded(run: RunFolder) -> None:
    corpus, settings = corpus_of(run, None), dynamic_settings(run)
    stamp, model = run.stamped_model("finetune")
    kept = list((run.path / "finetune").glob("gradient-statistics-*"))
    assert kept
    another_model(run)
    assert not any(path.exists() for path in kept), "those of a model that is gone take its room"
    statistics = cached_statistics(run, stamp, model, corpus, settings, SILENT)
    assert isinstance(statistics, GradientStatistics)
    assert known_statistics(run, stamp, model, corpus, settings) is not None
    assert known_statistics(run, run.model_stamp("finetune"), run.load_model(), corpus, settings) is None
