"""One report for all tests: of a mixture that went through every stage and a softmax that did not, on hostile text."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from highrank.data import Corpus, load_corpus
from highrank.evaluate import dynamic_evaluate_run, dynamic_settings, evaluate_run, evaluate_run_at, rank_run
from highrank.runs import RunFolder, choose_device, read_config
from highrank.train import Machine, finetune, open_or_create, train

RECIPE = Path(__file__).parent.parent / "train" / "tiny.toml"
HOSTILE = ("</script><script>wrong()</script>", "<img/src=x/onerror=wrong()>", "</noscript>", "&lt;b&gt;", "<!--")


class Made(NamedTuple):
    """folder: of the two runs, "mix <b>" and "soft"; page and figures: the report; said: its JSON."""

    folder: Path
    page: Path
    figures: Path
    said: dict[str, Any]
    corpus: Corpus

    @property
    def runs(self) -> tuple[Path, Path]:
        return self.folder / "mix <b>", self.folder / "soft"


@pytest.fixture(scope="session")
def begun(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """A function that begins a run on the hostile text, or on another one, with other settings."""
    text = tmp_path_factory.mktemp("hostile")
    for split in ("train", "valid", "test"):
        lines = (small_text / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        lines.insert(2, " ".join(HOSTILE))
        (text / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def begin(path: Path, *overrides: str, folder: Path = text) -> RunFolder:
        config = read_config(RECIPE, overrides=("train.epochs=2", "finetune.epochs=1", *overrides))
        return open_or_create(path, config, load_corpus(folder, name="hostile"), resume=False)

    return begin


@pytest.fixture(scope="session")
def made(begun: Callable[..., RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    where = Machine(choose_device("cpu"))
    mixture = begun(folder / "mix <b>", "train.average_from=2")
    corpus = load_corpus(Path(mixture.facts["corpus"]["folder"]), name="hostile")
    train(mixture, corpus, where)
    evaluate_run(mixture, corpus, "test", stage="train")
    finetune(mixture, corpus, where)
    evaluate_run(mixture, corpus, "test")
    dynamic_evaluate_run(mixture, corpus, ("test",), dynamic_settings(mixture))
    softmax = begun(folder / "soft", "model.head=softmax", "train.epochs=1")
    train(softmax, corpus, where)
    evaluate_run(softmax, corpus, "test")
    evaluate_run_at(softmax, corpus, "test", "tune")
    for run in (mixture, softmax):
        rank_run(run, corpus, contexts=120)
    page, figures = folder / "report.html", folder / "figures"
    command = [sys.executable, "-m", "highrank", "report", *map(str, (mixture.path, softmax.path))]
    options = ["--out", str(page), "--figures", str(figures), "--words", "60", "--from", "1", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return Made(folder, page, figures, json.loads(done.stdout), corpus)
