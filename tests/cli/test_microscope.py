"""``highrank rank`` and ``highrank components`` as a user calls them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len

from benchmarks.processes import here, one_line
from highrank.cli.main import main
from highrank.data import load_corpus
from highrank.runs import RunFolder
from highrank.runs.tensors import write_tensors
from tests.untrained import make_run

HEADS = ("softmax", "mixture-of-contexts", "mixture-of-softmaxes")


WIDTH = 6  # of the contexts


@pytest.fixture(scope="module")
def runs(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each head."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = load_corpus(small_text)
    for head in HEADS:
        make_run(folder / head, corpus, head, embedding_features=WIDTH)
    return folder


def done(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command printed that succeeded."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--device", "cpu"]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    """The one line of a command that failed."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--device", "cpu"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("highrank: ")
    return last


def test_ranks_of_several_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [runs / head for head in HEADS]
    result = json.loads(done(capsys, "rank", *folders, "--contexts", "90", "--json"))
    assert [each["numerical_rank"] for each in result["runs"]] == [8, 8, 90]
    assert [each["bound"] for each in result["runs"]] == [8, 8, None]
    assert [entry["rank"] for entry in result["paper"]] == [400, 280, 9981]
    assert result["same_vocabulary"] is True
    assert json.loads((runs / "softmax" / "rank.json").read_text())["numerical_rank"] == 8
    table = done(capsys, "rank", *folders, "--contexts", "90").splitlines()
    assert table[1].split()[-8:] == ["softmax", "6", str(len(load(runs))), "90", "8", "8", *table[1].split()[-2:]]
    assert [line.split()[-1] for line in table if line.startswith("the paper")] == ["400", "280", "9,981"]
    assert sum("above round-off" in line and "float64" in line for line in table) == 3
    assert not any("different vocabularies" in line for line in table)


def load(runs: Path) -> tuple[str, ...]:
    return RunFolder.open(runs / "softmax").vocabulary.words


def test_names_of_wide_characters_stand_in_columns_too(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, head in (("日本語のモデル", "softmax"), ("plain", "mixture-of-softmaxes")):
        shutil.copytree(runs / head, tmp_path / name)
    lines = done(capsys, "rank", tmp_path / "日本語のモデル", tmp_path / "plain", "--contexts", "20").splitlines()
    ends = {cell_len(line) for line in lines[:3]}
    assert len(ends) == 1, "the last column is flush right"


def test_runs_of_different_vocabularies_are_listed_with_a_warning(
    runs: Path, kjv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "valid", "test"):
        lines = (kjv / f"{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)[200:212]
        (text / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    make_run(tmp_path / "other", load_corpus(text), "softmax", embedding_features=WIDTH)
    folders = [runs / "softmax", tmp_path / "other"]
    assert "The runs have different vocabularies" in done(capsys, "rank", *folders, "--contexts", "20")
    assert json.loads(done(capsys, "rank", *folders, "--contexts", "20", "--json"))["same_vocabulary"] is False
    (runs / "softmax" / "rank.json").unlink()
    assert f"{tmp_path / 'other'}: test: " in refused(capsys, "rank", *folders, "--contexts", 600)
    assert not (runs / "softmax" / "rank.json").exists(), "the first was measured before the second was looked at"
    line = refused(capsys, "components", runs / "mixture-of-softmaxes", "--control", tmp_path / "other")
    assert "another vocabulary" in line


def test_a_saved_matrix_has_no_contexts_to_choose(tmp_path: Path) -> None:
    asked = here("rank", "--matrix", tmp_path / "m.npy", "--contexts", "10", "--split", "valid", "--data", tmp_path)
    one_line(asked, "--split, --contexts, --data is for runs", codes=(2,))


def test_a_saved_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((70, 4), (4, 50))]
    matrix = torch.log_softmax(factors[0] @ factors[1], -1)
    np.save(tmp_path / "m.npy", matrix.numpy())
    write_tensors(tmp_path / "m.safetensors", {"m": matrix})
    for name in ("m.npy", "m.safetensors"):
        result = json.loads(done(capsys, "rank", "--matrix", tmp_path / name, "--json"))
        assert (result["numerical_rank"], result["contexts"], result["vocabulary"]) == (5, 70, 50)
        assert result["matrix"] == str(tmp_path / name)
    assert "5 of 50 singular values above round-off" in done(capsys, "rank", "--matrix", tmp_path / "m.npy")
    write_tensors(tmp_path / "m.safetensors", {"m": matrix.bfloat16()})  # whose round-off is above every share
    assert "\n    effective rank" in done(capsys, "rank", "--matrix", tmp_path / "m.safetensors")
    matrix[2, 3] = torch.nan
    np.save(tmp_path / "nan.npy", matrix.numpy())
    np.save(tmp_path / "vector.npy", matrix[0].numpy())
    assert "nan.npy: log_probs: expected finite numbers" in refused(capsys, "rank", "--matrix", tmp_path / "nan.npy")
    assert "vector.npy: log_probs: expected a matrix" in refused(capsys, "rank", "--matrix", tmp_path / "vector.npy")
    assert "no such file" in refused(capsys, "rank", "--matrix", tmp_path / "missing.npy")
    assert "expected a .npy" in refused(capsys, "rank", "--matrix", tmp_path / "matrix.pt")


def test_components_of_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, control = runs / "mixture-of-softmaxes", runs / "softmax"
    result = json.loads(done(capsys, "components", run, "--split", "valid", "--control", control, "--json"))
    assert (result["run"], result["num_components"], result["split"]) == (str(run), 3, "valid")
    assert result["gain"]["control"]["run"] == str(control)
    printed = done(capsys, "components", run, "--split", "valid")
    assert f"3 components, {result['tokens']:,} tokens, {result['loss_nats']:.4f} nats" in printed
    for each in result["components"]:
        assert f"{each['mean_prior']:.3f}  {each['mean_posterior']:9.3f}" in printed
    telling = max(result["contexts"], key=lambda context: context["information_nats"])
    assert f'after "{" ".join(telling["text"])}" (then came {telling["target"]})' in printed
    assert printed.count("likelier words of each") == 3
    for k, (first, *_) in enumerate(telling["components"]):
        weights = f"{telling['prior'][k]:.3f}  {telling['posterior'][k]:9.3f}"
        assert f"{weights}  {first['word']} {first['probability']:.3f}" in printed
    assert "gain over component" in printed
    assert str(control) not in printed


def test_bad_input_is_one_clear_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "mixture-of-softmaxes"
    assert "expected run folders, or --matrix" in refused(capsys, "rank", code=2)
    assert "expected run folders, or --matrix" in refused(capsys, "rank", run, "--matrix", "m.npy", code=2)
    assert "'finetune' has no model yet" in refused(capsys, "rank", runs / "softmax", "--stage", "finetune")
    assert "'finetune' has no model yet" in refused(capsys, "components", run, "--stage", "finetune")
    assert "fewer than the 1,000,000 that were asked for" in refused(capsys, "rank", run, "--contexts", 1_000_000)
    assert "one softmax, which has no components" in refused(capsys, "components", runs / "softmax")
    assert "mixes contexts before one softmax" in refused(capsys, "components", runs / "mixture-of-contexts")
    assert "not a run folder" in refused(capsys, "components", tmp_path)
    (runs / "softmax" / "rank.json").unlink(missing_ok=True)
    untrained = tmp_path / "untrained"
    shutil.copytree(run, untrained, ignore=shutil.ignore_patterns("train"))
    assert "no trained model yet" in refused(capsys, "rank", runs / "softmax", untrained, "--contexts", 30)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "vocabulary.txt").write_text("a\n<eos>\n", encoding="utf-8")
    assert "changed since the run" in refused(capsys, "rank", runs / "softmax", other, "--contexts", 30)
    assert not (runs / "softmax" / "rank.json").exists(), "the first was measured before the second was looked at"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        *((f"rank run --contexts {value}", "whole number of at least 1") for value in ("0", "-1", "ten", "1.5")),
        ("report run --from 0.5", "whole number of at least 0"),
        ("train penn --checkpoint-minutes -0.5", "number of at least 0"),
    ],
)
def test_a_number_that_is_none_is_named(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    *_, option, value = words.split()
    assert f"{option}: expected a {expected}, got {value}" in capsys.readouterr().err
