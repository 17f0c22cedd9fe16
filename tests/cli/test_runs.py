"""``highrank runs`` and ``highrank compare``: what they say of runs whole, at work, begun and damaged."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import RECIPE, here
from highrank.cli.main import main
from highrank.runs import at_work
from highrank.runs.checkpoint import checkpoint_folders
from tests.terminal import on_a_terminal, screen

SETTINGS = ["--set", "data.train_tokens=1500", "--set", "data.heldout_tokens=300", "--set", "train.epochs=2"]


def listed(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    done = here("runs", folder, "--json", *options)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)["runs"]}


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def change_results(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    results = results_of(run)
    change(results)
    (run / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def whole(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, fine-tuned, evaluated and dynamically evaluated."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = here("run", RECIPE, *SETTINGS, "--out", run, "--device", "cpu", "--data", small_text)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def runs(whole: Path, tmp_path: Path) -> Path:
    """whole, and in a folder below: trained (its fine-tuning gone) and begun (stopped in its second epoch)."""
    folder = tmp_path / "runs"
    shutil.copytree(whole, folder / "whole")
    trained = folder / "deeper" / "trained"
    shutil.copytree(whole, trained)
    shutil.rmtree(trained / "finetune")
    keep_records(trained, lambda record: record["stage"] == "train")
    change_results(trained, lambda results: (results.pop("finetune"), results.pop("dynamic")))
    begun = folder / "begun"
    shutil.copytree(trained, begun)
    keep_records(begun, lambda record: record["epoch"] == 1)
    shutil.rmtree(checkpoint_folders(begun / "train")[0])
    (begun / "results.json").unlink()
    return folder


def keep_records(run: Path, kept: Callable[[dict[str, Any]], bool]) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if kept(json.loads(line))))


def validations(run: Path, stage: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if (record["stage"], record["event"]) == (stage, "validation")]


def test_each_run_with_the_figures_of_its_last_stage(runs: Path) -> None:
    found = listed(runs)
    assert set(found) == {"whole", "deeper/trained", "begun"}
    whole, trained, begun = found["whole"], found["deeper/trained"], found["begun"]
    results = results_of(runs / "whole")
    assert (whole["stage"], whole["state"]) == ("finetune", "finished")
    assert whole["valid_perplexity"] == results["finetune"]["valid"]["perplexity"]
    assert whole["test_perplexity"] == results["finetune"]["test"]["perplexity"]
    assert whole["dynamic_test_perplexity"] == results["dynamic"]["test"]["perplexity"]
    assert whole["updates"] == results["finetune"]["updates"]
    assert (trained["stage"], trained["state"], trained["dynamic_valid_perplexity"]) == ("train", "finished", None)
    assert trained["test_perplexity"] == results["train"]["test"]["perplexity"]
    [validation] = validations(runs / "begun", "train")
    assert (begun["state"], begun["epoch"], begun["epochs"], begun["test_perplexity"]) == ("interrupted", 2, 2, None)
    assert (begun["updates"], begun["valid_perplexity"]) == (validation["step"], validation["perplexity"])
    assert [run["valid_is_exact"] for run in (whole, trained, begun)] == [True, True, False]
    assert (whole["head"], whole["num_components"]) == ("mixture-of-softmaxes", 3)
    from highrank import load

    assert whole["parameters"] == load(runs / "whole").model.num_parameters
    assert listed(runs / "whole")["whole"] == whole | {"age_s": pytest.approx(whole["age_s"], abs=60)}


def test_an_exact_figure_is_exact_though_its_stage_has_not_ended(runs: Path, small_text: Path) -> None:
    begun = runs / "begun"
    [validation] = validations(begun, "train")
    done = here("evaluate", begun, "--split", "valid", "--data", small_text, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    row, exact = listed(runs)["begun"], results_of(begun)["train"]["valid"]["perplexity"]
    assert (row["valid_perplexity"], row["valid_is_exact"]) == (exact, True)
    assert exact != validation["perplexity"]
    from highrank.runs import RunFolder
    from highrank.runs.tensors import model_tensors

    run = RunFolder.open(begun)
    run.save_best("train", model_tensors(run.load_model("train")))
    row = listed(runs)["begun"]
    assert (row["valid_perplexity"], row["valid_is_exact"]) == (validation["perplexity"], False)


def test_what_was_measured_of_the_best_model_stays_when_the_stage_ends(runs: Path, small_text: Path) -> None:
    begun = runs / "begun"
    options = ["--data", small_text, "--device", "cpu"]
    done = here("evaluate", begun, "--split", "test", *options)
    assert done.returncode == 0, done.stderr
    measured = results_of(begun)["train"]["test"]
    still = ["--set", "train.lr=1e-30", "--out", begun, "--resume"]  # so that no better model is found
    done = here("train", RECIPE, *SETTINGS, *options, *still)
    assert done.returncode == 0, done.stderr
    assert "valid_perplexity" in results_of(begun)["train"], "it has not come to its end"
    assert results_of(begun)["train"]["test"] == measured


def test_the_update_is_that_of_the_checkpoint(runs: Path) -> None:
    """Of a run that was stopped between two records, or killed after some that it will write again."""
    run = runs / "begun"
    [saved] = checkpoint_folders(run / "train")
    state = json.loads((saved / "state.json").read_text())
    at = state["position"]["step"]
    record = {"stage": "train", "event": "interval", "epoch": 2, "step": at + 50, "loss_nats": 5.0, "elapsed_s": 9.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    assert (listed(runs)["begun"]["updates"], listed(runs)["begun"]["epoch"]) == (at, 2)
    with at_work(run):
        assert listed(runs)["begun"]["updates"] == at + 50
    (run / "metrics.jsonl").unlink()
    (run / "train" / "model.safetensors").unlink()  # stopped in its first epoch: nothing is recorded yet
    assert (listed(runs)["begun"]["updates"], listed(runs)["begun"]["state"]) == (at, "interrupted")
    (saved / "state.json").write_text('{"position": {"step": "many"}}')
    assert listed(runs)["begun"]["updates"] is None


def test_who_is_at_work_and_what_was_measured_so_far(runs: Path) -> None:
    run = runs / "begun"
    tempered = {"temperature": 1.1, "tuned_on": "valid", "test": {"perplexity": 499.0}}
    measured = {"train": {"test": {"perplexity": 501.0}, "tempered": tempered}}
    (run / "results.json").write_text(json.dumps(measured))
    with at_work(run):
        row = listed(runs)["begun"]
    assert (row["state"], row["test_perplexity"]) == ("at work", 501.0)
    assert row["valid_perplexity"] == validations(run, "train")[0]["perplexity"]
    known = {"temperature": 1.1, "tuned_on": "valid", "valid_perplexity": None, "test_perplexity": 499.0}
    assert compared(run, runs / "whole")["runs"][0]["stages"]["train"]["tempered"] == known
    assert "1.1, tuned on valid" in here("compare", run, runs / "whole").stdout


def test_runs_that_have_just_been_made_or_were_imported(runs: Path) -> None:
    new, imported = runs / "new", runs / "imported"
    shutil.copytree(runs / "begun", new)
    shutil.rmtree(new / "train")
    (new / "metrics.jsonl").unlink()
    shutil.copytree(runs / "begun", imported)
    (imported / "metrics.jsonl").unlink()
    found = listed(runs)
    assert (found["new"]["state"], found["new"]["updates"], found["new"]["parameters"]) == ("interrupted", None, None)
    assert (found["imported"]["state"], found["imported"]["valid_perplexity"]) == ("imported", None)


def test_orders(runs: Path) -> None:
    def names(*options: str) -> list[str]:
        return list(listed(runs, *options))

    for age, name in enumerate(("deeper/trained", "begun", "whole")):
        for file in (runs / name).iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    assert names() == names("--sort", "age") == ["deeper/trained", "begun", "whole"]
    assert names("--sort", "name") == ["begun", "deeper/trained", "whole"]
    assert names("--sort", "name", "--reverse") == ["whole", "deeper/trained", "begun"]
    assert names("--sort", "stage")[-1] == "whole"
    found = listed(runs)
    by_update = sorted(found, key=lambda name: (found[name]["updates"], -found[name]["age_s"]))
    assert names("--sort", "update") == by_update
    by_perplexity = sorted(found, key=lambda name: float(found[name]["valid_perplexity"]))
    assert names("--sort", "perplexity") == by_perplexity
    (runs / "begun" / "metrics.jsonl").unlink()  # no perplexity: last, either way
    assert names("--sort", "perplexity")[-1] == names("--sort", "perplexity", "--reverse")[-1] == "begun"


DAMAGE: dict[str, tuple[str, bytes | None]] = {
    "settings missing": ("config.toml", b'[data]\ncorpus = "small-text"\n'),
    "no settings": ("config.toml", None),
    "no TOML": ("config.toml", b"\x00\xff"),
    "facts cut short": ("run.json", b'{"versions": {'),
    "facts of another kind": ("run.json", b'{"corpus": []}'),
    "no vocabulary": ("vocabulary.txt", None),
    "results of another kind": ("results.json", b'{"train": {"valid_perplexity": "low"}}'),
    "a temperature of another kind": ("results.json", b'{"train": {"tempered": {"temperature": "warm"}}}'),
    "results nested": ("results.json", b"[" * 100_000),
    "a model without a head": ("finetune/model.safetensors", b"\xff" * 40),
    "a model cut short": ("finetune/model.safetensors", b"\x40"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_a_line(damage: str, runs: Path) -> None:
    name, content = DAMAGE[damage]
    place = runs / "whole" / name
    place.unlink()
    if content is not None:
        place.write_bytes(content)
    done = here("runs", runs)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = [line for line in done.stdout.splitlines() if "damaged" in line]
    assert line.startswith(f"whole: damaged: {name}"), line
    assert line.endswith(f"; see highrank doctor {runs / 'whole'}")
    assert len(done.stdout.splitlines()) == 4
    assert listed(runs)["whole"]["state"] == "damaged"
    refused = here("compare", runs / "begun", runs / "whole")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "highrank doctor" in refused.stderr


def test_records_that_are_none_are_passed_over(runs: Path) -> None:
    metrics = runs / "whole" / "metrics.jsonl"
    before = listed(runs)["whole"]
    with metrics.open("ab") as file:
        file.write(b'{"stage": 3}\n\xff\xfe\n' + b'{"stage": "finetune", "event": "validation", "epoch": 9')
    assert listed(runs)["whole"] | {"age_s": 0} == before | {"age_s": 0}
    keep = results_of(runs / "whole")
    keep["finetune"]["test"]["perplexity"] = float("inf")
    (runs / "whole" / "results.json").write_text(json.dumps(keep))
    assert listed(runs)["whole"]["test_perplexity"] is None


def test_folders_without_runs(tmp_path: Path) -> None:
    done = here("runs", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no run folders" in done.stderr
    assert json.loads(here("runs", tmp_path, "--json").stdout) == {"runs": []}
    missing = here("runs", tmp_path / "none")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "none: no such folder" in missing.stderr


def test_a_hundred_runs_without_pytorch(runs: Path) -> None:
    records = (runs / "whole" / "metrics.jsonl").read_bytes() + b'{"stage": "finetune", "event": "interval"}\n' * 1000
    for number in range(100):
        shutil.copytree(runs / "begun", runs / f"many/run-{number:03d}", ignore=shutil.ignore_patterns("train"))
        (runs / f"many/run-{number:03d}/metrics.jsonl").write_bytes(records)
    script = "import sys; from highrank.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    for arguments in (["runs", runs], ["compare", runs / "whole", runs / "begun"]):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"
    assert len(listed(runs)) == 103


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_table_on_a_terminal(columns: int, runs: Path) -> None:
    shown = on_a_terminal(["-m", "highrank", "runs", runs], columns=columns)
    lines = screen(shown.stream, columns)
    assert shown.returncode == 0, shown.stream
    table = [line for line in lines if line]
    legend = next(place for place, line in enumerate(table) if line.startswith("~: "))
    assert legend <= 4 + 3 * (columns < 200)  # head, three runs, what was left out
    assert lines[0].startswith("name")
    assert "valid" in lines[0]
    assert ("corpus" in lines[0]) == (columns == 200)
    assert ("too narrow for" in shown.stream) == (columns < 200)
    [begun] = validations(runs / "begun", "train")
    assert f" ~{begun['perplexity']:.2f} " in next(line for line in table if line.startswith("begun"))
    piped = here("runs", runs).stdout.splitlines()
    assert "corpus" in piped[0]
    assert len({line.index("  M") if "  M" in line else 0 for line in piped[1:]}) == 1, "columns are not aligned"


def test_a_narrow_terminal_cuts_no_figure_of_a_comparison(runs: Path) -> None:
    folders = [runs / "whole", runs / "begun", runs / "deeper" / "trained"]
    shown = on_a_terminal(["-m", "highrank", "compare", *folders], columns=40)
    assert shown.returncode == 0, shown.stream
    assert "\u2026" not in shown.stream
    exact, _, _ = (run["stages"]["train"] for run in compared(*folders)["runs"])
    assert f"{exact['valid_perplexity']:.2f}" in "".join(screen(shown.stream, 40))


def compared(*arguments: str | Path) -> dict[str, Any]:
    done = here("compare", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_settings_that_differ_and_results_side_by_side(runs: Path) -> None:
    config = runs / "begun" / "config.toml"
    config.write_text(config.read_text().replace("num_components = 3", "num_components = 4"))
    found = compared(runs / "whole", runs / "begun", runs / "deeper" / "trained")
    assert found["settings"] == {"model.num_components": [3, 4, 3]}
    assert found["perplexities_comparable"] is True
    assert found["obstacles"] == found["notes"] == []
    whole, begun, trained = found["runs"]
    results = results_of(runs / "whole")
    assert whole["stages"]["finetune"]["test_perplexity"] == results["finetune"]["test"]["perplexity"]
    assert whole["stages"]["train"] == trained["stages"]["train"]
    assert whole["stages"]["train"]["elapsed_s"] == results["train"]["elapsed_s"]
    assert whole["dynamic"]["settings"]["lamb"] == results["dynamic"]["settings"]["lamb"]
    assert begun["dynamic"] is None
    assert set(begun["stages"]) == {"train"}
    text = here("compare", runs / "whole", runs / "begun").stdout
    assert f"{results['dynamic']['valid']['perplexity']:.2f} / {results['dynamic']['test']['perplexity']:.2f}" in text
    assert "cannot be compared" not in text


def test_a_temperature_tuned_on_valid_is_told_recorded_apart_and_compared(runs: Path) -> None:
    run, other = runs / "whole", runs / "deeper" / "trained"
    before = results_of(run)
    said = json.loads(here("evaluate", run, "--temperature", "tune", "--json", "--device", "cpu").stdout)
    assert (said["split"], said["tuned_on"], said["counted"]) == ("test", "valid", "every predicted token")
    assert said["untempered"]["perplexity"] == pytest.approx(before["finetune"]["test"]["perplexity"], rel=1e-5)
    after = results_of(run)
    tempered = after["finetune"].pop("tempered")
    assert after == before
    assert tempered["test"]["perplexity"] == said["perplexity"]
    at = f"{said['temperature']:g}"
    line = here("evaluate", run, "--temperature", at, "--device", "cpu").stdout
    assert f"perplexity {said['perplexity']:.2f}" in line
    assert f"(temperature {at}; at 1: {said['untempered']['perplexity']:.2f})" in line
    assert f"- / {said['perplexity']:.2f}" in here("compare", run, other).stdout
    whole, trained = (each["stages"] for each in compared(run, other)["runs"])
    assert trained["train"]["tempered"] is None
    assert whole["finetune"]["tempered"] == {
        "temperature": said["temperature"],
        "tuned_on": None,
        "valid_perplexity": None,
        "test_perplexity": pytest.approx(said["perplexity"]),
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            (["--temperature", bad], "temperature: expected a number from 0.001 on")
            for bad in ("0", "-1", "nan", "inf")
        ),
        (["--temperature", "1", "--paper"], "--temperature: the paper's code has none"),
        (["--temperature", "tune", "--split", "valid"], "temperature: one that is tuned on the valid text"),
    ],
)
def test_temperatures_that_are_none(options: list[str], said: str, whole: Path) -> None:
    done = here("evaluate", whole, "--device", "cpu", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"highrank: {said}")
    assert "tempered" not in results_of(whole)["finetune"]


def test_a_temperature_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "run", "--temperature", "warm"])
    assert "argument --temperature: expected a number or tune, got warm" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["vocabulary", "test text", "held-out length", "training text", "unknown"])
def test_perplexities_that_cannot_be_compared(what: str, runs: Path) -> None:
    other = runs / "begun"
    facts = json.loads((other / "run.json").read_text())
    if what == "vocabulary":
        with (other / "vocabulary.txt").open("a") as file:
            file.write("neverseen\n")
    elif what == "held-out length":
        config = (other / "config.toml").read_text()
        (other / "config.toml").write_text(config.replace("heldout_tokens = 300", "heldout_tokens = 200"))
    elif what == "unknown":
        del facts["corpus"]["sha256"]
    else:
        facts["corpus"]["sha256"]["test" if what == "test text" else "train"] = "0" * 64
    (other / "run.json").write_text(json.dumps(facts))
    found = compared(runs / "whole", other)
    expected = {
        "vocabulary": "their vocabularies differ",
        "test text": "their validation or test texts differ",
        "held-out length": "the first 200 tokens of small-text",
        "training text": "not trained on the same text",
        "unknown": f"the text of {other} is not recorded",
    }[what]
    comparable = what in ("training text", "unknown")
    assert found["perplexities_comparable"] is comparable
    [said] = found["notes" if comparable else "obstacles"]
    assert expected in said
    assert ("perplexities cannot be compared" in here("compare", runs / "whole", other).stdout) is not comparable


def test_rank_and_components_where_they_were_measured(runs: Path) -> None:
    run = runs / "whole"
    for command in (["rank", run, "--contexts", "60"], ["components", run]):
        assert here(*command, "--device", "cpu").returncode == 0
    rank, components = (json.loads((run / name).read_text()) for name in ("rank.json", "components.json"))
    found = compared(run, runs / "begun")
    headline = (
        "stage",
        "split",
        "model_sha256",
        "contexts",
        "numerical_rank",
        "effective_rank",
        "bound",
        "mean_kl_nats",
    )
    assert found["rank"] == [{name: rank[name] for name in headline}, None]
    gain = {"best_component": {"gain_nats": components["gain"]["best_component"]["gain_nats"]}}
    assert (found["components"][0]["dead"], found["components"][0]["gain"]) == (components["dead"], gain)
    assert found["components"][1] is None
    rows = {line[:32].strip(): line[32:].split() for line in here("compare", run, runs / "begun").stdout.splitlines()}
    assert rows["rank"] == [str(rank["numerical_rank"]), "-"]
    assert rows["components: dead"] == [str(len(components["dead"])), "-"]
    (run / "rank.json").write_text(json.dumps(rank | {"model_sha256": "0" * 64}))
    (run / "components.json").write_text(json.dumps(components | {"dead": "none"}))
    found = compared(run, runs / "begun")
    assert found["rank"] == found["components"] == [None, None]
    assert "another model" in found["notes"][0]
    assert "components.json: damaged" in found["notes"][1]
    (run / "rank.json").write_text(json.dumps(rank | {"effective_rank": float("inf")}))
    assert "rank.json: damaged" in compared(run, runs / "begun")["notes"][0]


def test_folders_that_are_no_runs_are_not_compared(runs: Path) -> None:
    one = here("compare", runs / "whole")
    assert (one.returncode, "two run folders" in one.stderr) == (2, True)
    none = here("compare", runs / "whole", runs)
    assert (none.returncode, none.stderr.count("\n"), "not a run folder" in none.stderr) == (1, 1, True)
