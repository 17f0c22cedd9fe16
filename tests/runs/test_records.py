"""Records of a run as they are read again."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from highrank.data import load_corpus
from highrank.errors import UserError
from highrank.evaluate import (
    dynamic_evaluate,
    dynamic_evaluate_run,
    dynamic_settings,
    evaluate,
    evaluate_at,
    evaluate_run,
    evaluate_run_at,
    of_run,
    temperature_of_run,
)
from highrank.runs import RunFolder, parse_config
from highrank.runs.records import read_metrics
from highrank.runs.tensors import model_tensors
from highrank.train import corpus_of, stages
from tests.telling import Telling
from tests.untrained import make_run

RECORD = b'{"stage": "train", "event": "validation", "epoch": 1, "step": 2}\n'


def test_what_is_no_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(RECORD)
    expected = read_metrics(tmp_path)
    assert [record["step"] for record in expected] == [2]
    os.truncate(path, 64 << 20)
    tracemalloc.start()
    try:
        assert read_metrics(tmp_path) == expected
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_results_go_with_the_model_that_they_are_of(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = load_corpus(small_text)
    run, told = make_run(tmp_path / "run", corpus), Telling()
    tensors = model_tensors(run.load_model("train"))
    evaluate_run(run, corpus, "test", display=told)
    run.add_result("dynamic", {"stage": "train", "test": {"perplexity": 3.0}})
    run.add_result("finetune", {"test": {"perplexity": 4.0}})
    assert set(run.results) == {"train", "dynamic", "finetune"}
    run.save_best("train", tensors)
    assert set(run.results) == {"finetune"}

    def during(computed: Callable[..., Any]) -> Callable[..., Any]:
        def while_training_goes_on(*arguments: Any, **options: Any) -> Any:
            found = computed(*arguments, **options)
            for tensor in tensors.values():
                tensor += 0.25
            run.save_best("train", tensors)
            return found

        return while_training_goes_on

    monkeypatch.setattr(of_run, "evaluate", during(evaluate))
    assert told.messages == []
    evaluate_run(run, corpus, "test", display=told)
    assert set(run.results) == {"finetune"}
    not_recorded = f"not recorded: {run.path} has a newer model of train than the one that was measured"
    assert told.messages == [not_recorded]

    monkeypatch.setattr(temperature_of_run, "evaluate_at", during(evaluate_at))
    evaluate_run_at(run, corpus, "test", 1.5, stage="train", display=told)
    assert set(run.results) == {"finetune"}
    assert told.messages == [not_recorded] * 2

    run.add_result("dynamic", {"stage": "finetune", "test": {"perplexity": 5.0}})
    monkeypatch.setattr(of_run, "dynamic_evaluate", during(dynamic_evaluate))
    dynamic_evaluate_run(run, corpus, ("test",), dynamic_settings(run), stage="train", display=told)
    assert run.results["dynamic"] == {"stage": "finetune", "test": {"perplexity": 5.0}}
    assert told.messages == [not_recorded] * 3


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        ({"stage": "train", "test": {"tokens": 3}}, "train: no figures"),
        ({"stage": "train", "settings": {"lr": "x"}, "test": {"perplexity": 5.0}}, "train: test 5.00"),
        ({"stage": "train", "valid": {"perplexity": 4.0}}, "train: valid 4.00"),
        (
            {"stage": "train", "settings": {"lr": 0.002, "lamb": 0.0, "epsilon": 1.0}, "test": {"perplexity": 5.0}},
            "train with lamb 0, epsilon 1: test 5.00",
        ),
        (
            {
                "stage": "train",
                "search": [],
                "settings": {"lamb": 0.02, "lr": 0.00812345678},
                "test": {"perplexity": 5.0},
            },
            "train with lr 0.00812346: test 5.00; what its search had found: --lamb 0.02 --lr 0.00812345678",
        ),
    ],
)
def test_whatever_dynamic_evaluation_is_replaced(
    earlier: dict[str, Any], said: str, small_text: Path, tmp_path: Path
) -> None:
    corpus = load_corpus(small_text)
    run, told = make_run(tmp_path / "run", corpus), Telling()
    run.add_result("dynamic", earlier)
    result = dynamic_evaluate_run(run, corpus, ("test",), dynamic_settings(run), display=told)
    assert run.results["dynamic"]["test"] == result["test"]
    assert told.messages == [f"in place of the dynamic evaluation of {said}"]


def test_each_split_of_a_dynamic_evaluation_is_recorded_when_it_is_done(small_text: Path, tmp_path: Path) -> None:
    class Interrupting(Telling):
        def progress(self, task: str, *done: Any, **how: Any) -> None:
            if task == "dynamic evaluation: test":
                raise KeyboardInterrupt

    corpus = load_corpus(small_text)
    run = make_run(tmp_path / "run", corpus)
    settings = dynamic_settings(run)
    with pytest.raises(KeyboardInterrupt):
        dynamic_evaluate_run(run, corpus, ("valid", "test"), settings, display=Interrupting())
    before = run.results["dynamic"]
    assert {"valid", "test"} & set(before) == {"valid"}
    result = dynamic_evaluate_run(run, corpus, ("test",), settings)
    after = run.results["dynamic"]
    assert (after["valid"], after["test"]) == (before["valid"], result["test"])
    assert after["elapsed_s"] > before["elapsed_s"]
    both = dynamic_evaluate_run(run, corpus, ("valid", "test"), settings)
    spent_s = run.results["dynamic"]["elapsed_s"] - after["elapsed_s"]
    assert 0 < spent_s < 2 * (both["valid"]["elapsed_s"] + both["test"]["elapsed_s"]), "each second counts once"


def test_a_text_without_a_name_is_that_of_the_recipe(small_text: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", load_corpus(small_text))
    facts = json.loads((run.path / "run.json").read_text())
    facts["corpus"] = {"folder": str(tmp_path / "gone")}
    (run.path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="gone: not there any more; give the commands its new place with --data"):
        corpus_of(RunFolder.open(run.path), None)


def test_the_text_of_a_run_is_not_recognised_again(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", load_corpus(small_text, name="known"))
    monkeypatch.setattr(stages, "is_published", lambda name, folder: pytest.fail("which reads all files"))
    assert corpus_of(run, None).name == "known"
    assert corpus_of(run, str(small_text)).name == "known"


def test_own_text_that_has_moved_is_not_looked_for_under_the_name_of_the_recipes_corpus(
    small_text: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(small_text, tmp_path / "own-text")
    run = make_run(tmp_path / "run", load_corpus(own))
    run.change_config(parse_config({**msgspec.to_builtins(run.config), "data": {"corpus": "kjv"}}, source="test"))
    shutil.rmtree(own)
    with pytest.raises(UserError, match=r"own-text: not there any more; give the commands its new place with --data"):
        corpus_of(RunFolder.open(run.path), None)
