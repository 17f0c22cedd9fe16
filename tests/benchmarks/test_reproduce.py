"""``make reproduce-penn`` runs a recipe to its end, goes on where it was, and says whether the promise is kept."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import reproduce
from highrank.errors import UserError
from highrank.evaluate.paper import PAPER
from highrank.runs import find_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "train" / "tiny.toml"


def recipe(folder: Path, perplexity: str) -> Path:
    """The recipe of the tests, quicker still, with a promise."""
    text = TINY.read_text(encoding="utf-8").replace("epochs = 3", "epochs = 1")
    path = folder / "tiny.toml"
    path.write_text(f'[promise]\nperplexity = "{perplexity}"\n\n{text}', encoding="utf-8")
    return path


def make(*variables: str) -> "subprocess.CompletedProcess[str]":
    words = ["make", "--no-print-directory", "reproduce-penn", "DEMO=", f"PY={sys.executable}", *variables]
    return subprocess.run(
        words, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, timeout=300, check=False
    )


def test_a_promise_that_is_kept_and_then_one_that_is_not(
    small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    easy = recipe(tmp_path, "valid / test: trained 9000 / 9000, fine-tuned 9000 / 9000, dynamic evaluation 9000 / 9000")
    out = tmp_path / "run"
    done = make(f"RECIPE={easy}", f"OUT={out}", f"ARGS=--data {small_text} --device cpu")
    assert done.returncode == 0, done.stderr
    assert "the promise is kept: 6 of 6 figures" in done.stdout
    assert "tolerated: 0.6% worse" in done.stdout
    trained = (out / "train" / "model.safetensors").stat().st_mtime_ns

    [(_, ours)] = re.findall(r"^(trained +test) +9000\.00 +(\d+\.\d\d) ", done.stdout, re.M)
    for share, code, verdict in ((1.005, 0, "is kept: 2 of 2"), (1.008, 1, "is not kept: 1 of 2")):
        hard = recipe(tmp_path, f"trained 9000 / {float(ours) / share:.4f}")
        assert reproduce.main([str(hard), "--out", str(out), "--data", str(small_text), "--device", "cpu"]) == code
        printed = capsys.readouterr().out
        assert verdict in printed
        assert ("worse than promised" in printed) == bool(code)
    assert (out / "train" / "model.safetensors").stat().st_mtime_ns == trained, "it was trained again"


def test_the_promise_of_penn_is_the_papers() -> None:
    stages = {"train": "trained", "finetune": "fine-tuned", "dynamic": "dynamic evaluation"}
    for corpus, (mixture, *_) in PAPER.items():
        stated = {
            (stages[stage], split): figure
            for stage, figures in mixture.perplexity.items()
            for split, figure in zip(reproduce.SPLITS, figures, strict=True)
        }
        assert reproduce.promised(corpus) == stated
    assert reproduce.promised("penn")["fine-tuned", "test"] == 54.44
    assert reproduce.promised("penn")["dynamic evaluation", "test"] == 47.69


def test_every_recipe_that_has_been_run_promises_what_can_be_checked() -> None:
    not_run = {"penn-fast"}
    assert all(reproduce.promised(name) for name in set(recipe_names()) - not_run)
    for name in not_run:
        promise = tomllib.loads(find_recipe(name).read_text(encoding="utf-8"))["promise"]
        assert promise["perplexity"] == "not run yet"
        with pytest.raises(UserError, match="promises no perplexity"):
            reproduce.promised(name)


def test_what_is_missing_breaks_a_promise() -> None:
    promise = {("trained", "valid"): 50.0, ("trained", "test"): 50.0, ("fine-tuned", "test"): 50.0}
    results = {"train": {"valid": {"perplexity": 50.2}, "test": {"perplexity": 50.4}}}
    figures = reproduce.compared(promise, results)
    assert [figure.kept for figure in figures] == [True, False, False]
    said = list(reproduce.lines(figures))
    assert "+0.4%" in said[1]
    assert "worse" not in said[1]
    assert "worse than promised" in said[2]
    assert "missing" in said[3]


@pytest.mark.parametrize(
    ("perplexity", "complaint"), [("low", "promises no perplexity"), ("trained 5", "promises no perplexity")]
)
def test_a_recipe_without_a_promise_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], perplexity: str, complaint: str
) -> None:
    path = recipe(tmp_path, perplexity)
    assert reproduce.main([str(path), "--out", str(tmp_path / "run")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("reproduce: ")
    assert complaint in line
    assert reproduce.main(["pen", "--out", str(tmp_path / "run")]) == 2
    assert "did you mean 'penn'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
