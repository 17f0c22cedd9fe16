"""What the report says on the command line, its figures for papers, and runs that it cannot show or not all of."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.fuzzing.damage import nasty_tree
from benchmarks.processes import here, one_line
from highrank.data import Corpus
from highrank.errors import UserError
from highrank.evaluate import components_run, dynamic_settings, evaluate_run, rank_run
from highrank.explore import Explorer
from highrank.report import Wanted, check_comparable, check_plotting, gather, write_figures, write_page
from highrank.report.figure import Figure
from highrank.report.history import history_of
from highrank.report.model_figures import component_figures, spectrum_figures
from highrank.report.results import Cell, result_rows
from highrank.report.training_figures import training_figures
from highrank.runs import RunFolder
from highrank.runs.measured import read_components, read_rank
from highrank.runs.tensors import model_tensors
from tests.report.conftest import Made
from tests.telling import Telling


def highrank(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "highrank", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_what_the_command_says(made: Made) -> None:
    said = made.said
    assert said["bytes"] == made.page.stat().st_size
    mixture, softmax = said["runs"]
    assert [run["label"] for run in said["runs"]] == ["mix <b>", "soft"]
    assert [row["stage"] for row in mixture["stages"]] == ["trained", "fine-tuned", "dynamic evaluation"]
    assert mixture["passage"]["after_dynamic_evaluation"] is True
    assert mixture["missing"] == {}
    assert softmax["passage"]["after_dynamic_evaluation"] is False
    assert "one softmax" in softmax["missing"]["components"]
    assert "--dynamic" in softmax["missing"]["dynamic"]
    ranks = [json.loads((run / "rank.json").read_text())["numerical_rank"] for run in made.runs]
    assert [run["numerical_rank"] for run in said["runs"]] == ranks


def test_each_figure_is_svg_pdf_and_csv(made: Made) -> None:
    names = {path.stem for path in made.figures.iterdir()}
    places = ("epoch", "tokens", "time")
    assert {f"{measure}-by-{place}" for measure in ("loss", "perplexity") for place in places} <= names
    assert {
        "spectrum",
        "gain-by-frequency",
        "prior-entropy-by-line-position",
        "use-mix-b-",
        "divergence-mix-b-",
    } <= names
    assert sorted(made.said["figures"]) == sorted(str(path) for path in made.figures.iterdir())
    for name in names:
        svg = (made.figures / f"{name}.svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in svg, "a paper has no style sheet"
        assert (made.figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with (made.figures / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            assert list(csv.DictReader(file))


def test_figures_whose_names_differ_in_letters_of_any_script_or_in_signs_are_all_written(
    made: Made, tmp_path: Path
) -> None:
    found = read_components(made.runs[0] / "components.json")
    (use, *_) = component_figures({"a": found})
    labels = ("модель", "корпус", "a b", "a/b", "a b-2", "日本")
    figures = [replace(use, name=f"use-{label}", rows=[{"run": label}]) for label in labels]
    written = write_figures(tmp_path, figures)
    assert sorted(written) == sorted(tmp_path.iterdir())
    names = ["use-модель", "use-корпус", "use-a-b", "use-a-b-2", "use-a-b-2-2", "use-日本"]
    assert [path.stem for path in written[::3]] == names
    for label, path in zip(labels, written[2::3], strict=True):
        assert path.read_text(encoding="utf-8") == f"run\n{label}\n"


def test_the_figures_data_are_those_of_the_run(made: Made) -> None:
    with (made.figures / "loss-by-epoch.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == "mix <b>" and row["text"] == "validation"]
    records = [json.loads(line) for line in (made.runs[0] / "metrics.jsonl").read_text().splitlines()]
    recorded = [record for record in records if record["event"] == "validation"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([r["loss_nats"] for r in recorded], abs=1e-5)
    assert [float(row["epoch"]) for row in rows] == [1, 2, 2, 3]  # fine-tuning starts at the end of training
    with (made.figures / "spectrum.csv").open(encoding="utf-8", newline="") as file:
        values = [float(row["singular value"]) for row in csv.DictReader(file) if row["run"] == "soft"]
    assert values == json.loads((made.runs[1] / "rank.json").read_text())["singular_values"]


def test_the_softmax_beside_it_is_the_control_of_the_mixture(made: Made) -> None:
    found = read_components(made.runs[0] / "components.json")
    losses = [RunFolder.open(run).results for run in made.runs]
    assert found.gain.control is not None
    gain = losses[1]["train"]["test"]["loss_nats"] - losses[0]["finetune"]["test"]["loss_nats"]
    assert found.gain.control.gain_nats == pytest.approx(gain, abs=1e-4)
    assert (made.figures / "gain-over-control-by-frequency.svg").exists()
    page = made.page.read_text(encoding="utf-8")
    assert "Gain of the mixture over its control (softmax), by word frequency" in page
    assert "over the control" in page
    assert "were not all measured on the same contexts" not in page


def test_figures_of_another_control_or_text_are_said_to_be(made: Made, tmp_path: Path) -> None:
    mixture = shutil.copytree(made.runs[0], tmp_path / "mixture")
    rank_run(RunFolder.open(mixture), made.corpus, "train", contexts=120)
    (found, softmax) = (RunFolder.open(run) for run in (mixture, made.runs[1]))
    components_run(found, made.corpus, control=RunFolder.open(made.runs[0]))
    subjects = gather([found, softmax], lambda run: made.corpus, Wanted(passage_words=0))
    assert f"the gain over {softmax.path}: " in subjects[0].notes["components"]
    assert subjects[0].components is not None
    gain = next(figure for figure in component_figures({"mixture": subjects[0].components}) if "control" in figure.name)
    assert gain.title == "Gain of the mixture over its control (mixture of softmaxes), by word frequency"
    write_page(tmp_path / "report.html", subjects, [], command="")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "(of mixture on 120 contexts of the train text, of soft on 120 contexts of the test text)" in page
    components_run(found, made.corpus)
    (subject, _) = gather([found, softmax], lambda run: made.corpus, Wanted(passage_words=0))
    assert f"--control {softmax.path}" in subject.notes["components"]


def test_figures_of_a_control_that_has_been_fine_tuned_since_are_said_to_be(made: Made, tmp_path: Path) -> None:
    runs = [RunFolder.open(shutil.copytree(run, tmp_path / run.name)) for run in made.runs]
    components_run(runs[0], made.corpus, control=runs[1])
    wanted = Wanted(passage_words=0)
    assert "components" not in gather(runs, lambda run: made.corpus, wanted)[0].notes
    (runs[1].path / "finetune").mkdir()
    shutil.copy(runs[1].best_model_path("train"), runs[1].best_model_path("finetune"))
    assert f"--control {runs[1].path}" in gather(runs, lambda run: made.corpus, wanted)[0].notes["components"]


def test_the_switch_to_averaging_and_the_stages_are_marked(made: Made) -> None:
    history = history_of(RunFolder.open(made.runs[0]))
    marks = {mark.what: mark for mark in history.marks}
    assert marks["averaged SGD"].epoch == 1, "average_from = 2: from the end of the first epoch on"
    assert marks["fine-tuning"].epoch == 2
    times = [point.elapsed_s for point in history.points]
    assert times == sorted(times)
    epochs = [point.epoch for point in history.points]
    assert epochs == sorted(epochs)


def test_what_is_marked_has_a_line_of_its_own_and_says_of_which_runs(made: Made) -> None:
    history = history_of(RunFolder.open(made.runs[0]))
    runs = {"a": history, "b": history, "c": history_of(RunFolder.open(made.runs[1]))}

    def labels(*names: str) -> dict[str, int]:
        figure = training_figures({name: runs[name] for name in names})[0]
        rows = next(rows for rows in figure.specification("paper")["datasets"].values() if "label" in rows[0])
        return {row["label"]: row["line"] for row in rows}

    assert list(labels("a")) == list(labels("a", "b")) == ["averaged SGD", "fine-tuning"]
    assert list(labels("a", "c")) == ["averaged SGD (a)", "fine-tuning (a)"]
    three = labels("a", "b", "c")
    assert list(three) == ["averaged SGD (2 runs)", "fine-tuning (2 runs)"]
    assert len(set(three.values())) == 2


def test_records_that_were_changed_by_hand_are_left_out(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.runs[1], copy)
    with (copy / "metrics.jsonl").open("a") as file:
        for loss in ('"low"', "NaN", "null", "true"):
            file.write(f'{{"stage": "train", "event": "validation", "epoch": 9, "step": 9, "loss_nats": {loss}}}\n')
    assert history_of(RunFolder.open(copy)) == history_of(RunFolder.open(made.runs[1]))


def test_the_table_has_the_results_that_were_recorded(made: Made) -> None:
    runs = [RunFolder.open(path) for path in made.runs]
    mixture, softmax = result_rows(gather(runs, lambda run: made.corpus, Wanted(passage_words=0)))
    for stage in ("train", "finetune", "dynamic"):
        assert mixture.cells[stage, "test"].perplexity == runs[0].results[stage]["test"]["perplexity"]
    of_training = mixture.cells["train", "valid"]
    assert of_training.in_training, "not evaluated over the whole text"
    assert not of_training.so_far, "the stage came to its end"
    assert of_training.perplexity == runs[0].results["train"]["valid_perplexity"]
    assert softmax.cells["finetune", "test"].why_not == "not run"
    best = min((mixture, softmax), key=lambda row: row.cells["train", "test"].perplexity or 0)
    assert best.cells["train", "test"].best


def test_the_validation_of_a_stage_is_known_without_the_records_of_its_training(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.runs[1], tmp_path / "copy")
    (copy / "metrics.jsonl").unlink()
    (row,) = result_rows(gather([RunFolder.open(copy)], lambda run: made.corpus, Wanted(passage_words=0)))
    perplexity = RunFolder.open(copy).results["train"]["valid_perplexity"]
    assert row.cells["train", "valid"] == Cell(perplexity, in_training=True)


def test_a_temperature_is_a_note_below_the_table(made: Made) -> None:
    """In the table itself are figures of one kind."""
    _, softmax = made.runs
    found = RunFolder.open(softmax).results["train"]["tempered"]
    page = made.page.read_text(encoding="utf-8")
    said = f"at a softmax temperature of {found['temperature']:g}, tuned on valid: test "
    assert page.count("at a softmax temperature") == 1
    assert f"soft, trained, {said}{found['test']['perplexity']:.2f}." in page


def test_a_stage_that_is_under_way_is_said_to_be(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.runs[1], copy)
    (copy / "results.json").unlink()
    run = RunFolder.open(copy)
    evaluate_run(run, made.corpus, "test")
    subjects = gather([run], lambda run: made.corpus, Wanted(passage_words=0))
    (row,) = result_rows(subjects)
    assert row.cells["train", "valid"].so_far
    assert row.cells["train", "test"].so_far
    write_page(tmp_path / "report.html", subjects, [], command="")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("so far</span>") == 2


@pytest.mark.parametrize("tokens", [0, 300])
def test_part_of_a_text_is_not_set_beside_the_paper(
    begun: Callable[..., RunFolder], tmp_path: Path, tokens: int
) -> None:
    run = begun(tmp_path / "run", f"data.heldout_tokens={tokens}")
    facts = json.loads((run.path / "run.json").read_text())
    facts["corpus"] |= {"name": "penn", "as_published": True}
    (run.path / "run.json").write_text(json.dumps(facts))
    write_page(tmp_path / "report.html", gather([RunFolder.open(run.path)], _no_corpus, Wanted()), [], command="")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "22M" in text
    assert ("these runs a part of it: not to be set side by side" in text) == bool(tokens)


def _no_corpus(run: RunFolder) -> Corpus:
    raise AssertionError("nothing to measure: the text is not needed")


def test_different_vocabularies_are_refused(
    made: Made, begun: Callable[..., RunFolder], small_text: Path, tmp_path: Path
) -> None:
    other = begun(tmp_path / "other", folder=small_text)
    difference = RunFolder.open(made.runs[0]).vocabulary.difference(other.vocabulary)
    new = ["--out", tmp_path / "new" / "no.html", "--figures", tmp_path / "figures"]
    done = highrank("report", made.runs[0], tmp_path / "other", *new)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert f"different vocabularies ({difference})" in line
    assert "neither their perplexities nor their predictions can be compared" in line
    assert [path.name for path in tmp_path.iterdir()] == ["other"], "a folder was made for a report that is refused"


def test_dynamic_evaluation_of_no_passage_is_refused(made: Made) -> None:
    asked = here("report", made.runs[0], "--dynamic", "--words", "0")
    one_line(asked, "--dynamic is for the passage, which --words 0 leaves out", codes=(2,))


def test_a_run_twice_is_refused(made: Made) -> None:
    run = RunFolder.open(made.runs[1])
    with pytest.raises(UserError, match="given twice"):
        check_comparable([run, run])


def test_a_run_without_a_model_says_so(
    begun: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one without records has no plots: the page is still whole."""
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda *_: "window.vegaEmbed = null;")
    run = begun(tmp_path / "new")
    (subject,) = gather([run], _no_corpus, Wanted())
    assert set(subject.notes) == {"rank", "components", "passage"}
    write_page(tmp_path / "report.html", [subject], [], command="highrank report")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no trained model yet" in text
    assert "no record of its training" in text


@pytest.mark.parametrize("damage", ['{"format": 1}', '{"format": 2, "stage": "train"}', "[]", "{", '{"format": NaN}'])
def test_damaged_figures_are_told_and_the_rest_is_shown(made: Made, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.runs[0], copy)
    for name in ("rank.json", "components.json"):
        (copy / name).write_text(damage)
    (subject,) = gather([RunFolder.open(copy)], lambda run: made.corpus, Wanted(components=False, passage_words=5))
    assert "rank.json: damaged" in subject.notes["rank"]
    assert "components.json: damaged" in subject.notes["components"]
    assert subject.passage is not None


def test_damaged_figures_are_measured_again_where_that_is_asked_for(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.runs[0], copy)
    for name in ("rank.json", "components.json"):
        (copy / name).write_text("{")
    (subject,) = gather([RunFolder.open(copy)], lambda run: made.corpus, Wanted(rank=True, passage_words=0))
    assert subject.notes == {}
    assert subject.rank == read_rank(copy / "rank.json")
    assert subject.components == read_components(copy / "components.json")


def test_what_is_measured_for_the_report_and_cannot_be_recorded_is_in_it(made: Made, tmp_path: Path) -> None:
    copy, told = tmp_path / "copy", Telling()
    shutil.copytree(made.runs[0], copy)
    for name in ("rank.json", "components.json", ".writing"):
        (copy / name).unlink()
    (copy / ".writing").mkdir()  # in the place of the lock
    wanted = Wanted(rank=True, passage_words=0)
    (subject,) = gather([RunFolder.open(copy)], lambda run: made.corpus, wanted, display=told)
    assert subject.notes == {}
    assert subject.rank is not None
    assert subject.components is not None
    assert subject.rank.model_sha256 == read_rank(made.runs[0] / "rank.json").model_sha256
    assert (
        subject.components.gain.best_component == read_components(made.runs[0] / "components.json").gain.best_component
    )
    assert len([line for line in told.messages if line.startswith(f"not recorded: {copy}: ")]) == 2
    assert not (copy / "rank.json").exists()


@pytest.mark.parametrize(
    ("name", "read", "plots"),
    [
        ("rank.json", read_rank, spectrum_figures),
        ("components.json", read_components, component_figures),
    ],
)
def test_whatever_stands_in_the_files_is_shown_or_refused(
    made: Made, tmp_path: Path, name: str, read: Callable[[Path], Any], plots: Callable[[Any], list[Figure]]
) -> None:
    good, random, shown = (made.runs[0] / name).read_bytes(), Random(5), 0
    for _ in range(150):
        damage = nasty_tree("json", good, random)
        assert damage is not None
        damage.apply(tmp_path / name)
        try:
            found = read(tmp_path / name)
        except UserError:
            continue
        shown += 1
        if shown <= 15:
            for figure in plots({"a": found}):
                json.dumps(figure.specification("page"), allow_nan=False)
    assert 15 <= shown < 150


def test_figures_of_an_earlier_model_are_not_shown(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.runs[1], copy)
    values = json.loads((copy / "rank.json").read_text())
    (copy / "rank.json").write_text(json.dumps(values | {"model_sha256": "0" * 64}))
    (subject,) = gather([RunFolder.open(copy)], lambda run: made.corpus, Wanted(passage_words=0))
    assert subject.rank is None
    assert "on the model as it is now" in subject.notes["rank"]


def test_figures_of_a_model_that_training_has_replaced_meanwhile_are_not_shown(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.runs[1], copy)
    (copy / "rank.json").unlink()

    def while_training_goes_on(run: RunFolder, *arguments: Any, **options: Any) -> dict[str, Any]:
        found = rank_run(run, *arguments, **options)
        tensors = model_tensors(run.load_model("train"))
        run.save_best("train", {name: tensor + 0.25 for name, tensor in tensors.items()})
        return found

    monkeypatch.setattr(sys.modules["highrank.report.gather"], "rank_run", while_training_goes_on)
    (subject,) = gather([RunFolder.open(copy)], lambda run: made.corpus, Wanted(rank=True, passage_words=0))
    assert subject.rank is None
    assert "on the model as it is now" in subject.notes["rank"]


def test_a_lost_dynamic_evaluation_costs_only_its_half_of_the_passage(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made.runs[1], tmp_path / "run")
    assert highrank("finetune", run, "--set", "dynamic.lr=1e38").returncode == 0
    assert "the loss is lost" in highrank("dynamic-eval", run).stderr
    done = highrank("report", run, "--words", "60", "--from", "1", "--json")
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["runs"]
    assert said["passage"]["words"] == 60
    assert said["passage"]["after_dynamic_evaluation"] is False
    assert "the loss is lost (nan nats" in said["missing"]["dynamic"]
    assert "the loss is lost" in (run / "report.html").read_text(encoding="utf-8")


def test_report_and_explore_adapt_with_the_settings_that_were_scored(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.runs[0], tmp_path / "copy")
    run = RunFolder.open(copy)
    found = dynamic_settings(run, lr=0.0007, lamb=0.5)
    run.add_result("dynamic", {**run.results["dynamic"], "settings": found._asdict()})
    (subject,) = gather([run], lambda run: made.corpus, Wanted(components=False, passage_words=5))
    assert subject.settings == found != dynamic_settings(run)
    assert Explorer(run, lambda: made.corpus).settings == found
    assert Explorer(run, lambda: made.corpus, stage="train").settings == dynamic_settings(run)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match=r"needs vl_convert.*pip install 'highrank\[report\]'"):
        check_plotting()


@pytest.mark.parametrize(("command", "library"), [("report", "vl_convert"), ("explore", "gradio")])
def test_a_library_that_is_broken_is_not_said_to_be_missing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, library: str
) -> None:
    (tmp_path / f"{library}.py").write_text("from math import no_such_function\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = highrank(command, made.runs[1])
    assert done.returncode == 1
    assert done.stderr.startswith(f"highrank: {command} needs a library that is installed, but cannot be loaded: ")
    assert "cannot import name 'no_such_function'" in done.stderr


def test_where_nothing_can_be_written_nothing_is_measured(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made.runs[1], tmp_path / "run")
    (run / "rank.json").unlink()
    (tmp_path / "file").touch()
    for option, place, said in (
        ("--out", tmp_path, "a folder is in its place"),
        ("--out", tmp_path / "file" / "report.html", "File exists"),
        ("--figures", tmp_path / "file", "File exists"),
    ):
        one_line(here("report", run, "--rank", option, place), said)
        assert not (run / "rank.json").exists()
    one_line(here("report", tmp_path / "none"), "not a run folder")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/venv/bin/highrank", "train", "a b"], "highrank train &#39;a b&#39;"),
        (["/src/highrank/__main__.py", "train", "kjv-demo"], "highrank train kjv-demo"),
        (["main.py", "--data", "penn"], "python main.py --data penn"),
        (["/opt/mine/__main__.py", "x"], "python /opt/mine/__main__.py x"),
        (["mine", "x"], "mine x"),
    ],
)
def test_the_command_that_made_a_run_is_shown_as_one_would_type_it(
    begun: Callable[..., RunFolder], tmp_path: Path, words: list[str], shown: str
) -> None:
    path = begun(tmp_path / "run").path
    facts = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(facts | {"command": words}))
    write_page(tmp_path / "report.html", gather([RunFolder.open(path)], _no_corpus, Wanted()), [], command="")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f">{shown}<" in page


def test_a_text_that_is_gone_costs_only_the_passage(made: Made) -> None:
    def gone(run: RunFolder) -> Corpus:
        raise UserError("the text is gone")

    (subject,) = gather([RunFolder.open(made.runs[0])], gone, Wanted())
    assert subject.notes == {"passage": "the text is gone"}
    assert subject.rank is not None
    assert subject.components is not None
