"""The commands as a user calls them: what they print, and what they keep."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import RECIPE, command, here, one_line
from highrank import load
from highrank.runs import RunFolder


def test_a_run_folder_holds_what_it_should(trained: Path) -> None:
    for name in ("config.toml", "run.json", "vocabulary.txt", "metrics.jsonl", "log.txt", "results.json"):
        assert (trained / name).stat().st_size > 0, name
    for stage in ("train", "finetune"):
        assert (trained / stage / "model.safetensors").exists()
        assert list((trained / stage).glob("checkpoint-*"))
        assert list((trained / "tensorboard" / stage).glob("events.*"))
    facts = json.loads((trained / "run.json").read_text())
    assert {"highrank", "torch", "python"} <= set(facts["versions"])
    assert set(facts["corpus"]["sha256"]) == {"train", "valid", "test"}


def test_no_training_loss_is_recorded_of_what_was_not_trained(trained: Path) -> None:
    """Fine-tuning begins with a validation."""
    validations = [record for record in RunFolder.open(trained).metrics() if record["event"] == "validation"]
    unknown = [(r["stage"], r["step"]) for r in validations if r["train_loss_nats"] is None]
    assert unknown == [("finetune", 0)]
    assert all(0 < r["train_loss_nats"] < 20 for r in validations if r["step"])


def test_fine_tuning_never_ends_worse_than_it_began(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["finetune"]["valid_loss_nats"] <= results["train"]["valid_loss_nats"]


def test_validations_record_the_use_of_components(trained: Path) -> None:
    validations = [record for record in RunFolder.open(trained).metrics() if record["event"] == "validation"]
    assert {record["stage"] for record in validations} == {"train", "finetune"}
    for record in validations:
        for name in ("mean_prior", "mean_posterior"):
            assert len(record[name]) == 3
            assert sum(record[name]) == pytest.approx(1, abs=1e-6)
        assert 0 < record["prior_entropy_nats"] <= math.log(3)


def test_evaluate_agrees_with_the_recorded_loss_and_the_python_api(run: Path, small_text: Path) -> None:
    done = here("evaluate", run, "--split", "valid", "--batch", "4", "--stage", "train", "--json")
    result = json.loads(done.stdout)
    recorded = json.loads((run / "results.json").read_text())["train"]["valid_loss_nats"]
    assert result["loss_nats"] == pytest.approx(recorded, abs=1e-5)  # in other segments: another order of sums
    exact = json.loads(here("evaluate", run, "--split", "valid", "--json").stdout)
    assert exact["tokens"] == len((small_text / "valid.txt").read_text().replace("\n", " <eos> ").split()) - 1
    paper = json.loads(here("evaluate", run, "--split", "test", "--paper", "--json").stdout)
    test = json.loads(here("evaluate", run, "--split", "test", "--json").stdout)
    assert paper["loss_nats"] == pytest.approx(test["loss_nats"] * test["tokens"] / (test["tokens"] + 1))
    model, vocabulary = load(run)
    assert model.vocab_size == len(vocabulary)


def test_dynamic_evaluation_caches_its_statistics(run: Path) -> None:
    first = here("dynamic-eval", run, "--split", "valid", "--lr", "0.001", "--json")
    cached = sorted(run.rglob("gradient-statistics-*.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in cached]
    second = here("dynamic-eval", run, "--split", "valid", "--lr", "0.001", "--json")
    assert cached
    assert [path.stat().st_mtime_ns for path in sorted(run.rglob("gradient-statistics-*"))] == stamps
    assert json.loads(first.stdout)["valid"]["loss_nats"] == json.loads(second.stdout)["valid"]["loss_nats"]


def test_damaged_statistics_are_computed_again(run: Path) -> None:
    path = next(run.rglob("gradient-statistics-*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    done = here("dynamic-eval", run, "--split", "valid", "--json")
    assert done.returncode == 0, done.stderr
    assert "again" in done.stderr


def test_a_lost_dynamic_evaluation_is_no_result(run: Path) -> None:
    before = RunFolder.open(run).results
    done = here("dynamic-eval", run, "--lr", "1000", "--epsilon", "1e-6")
    one_line(done, "the loss is lost", "dynamic.lr (250)", "dynamic.epsilon (dynamic-eval: --lr, --epsilon)")
    one_line(here("dynamic-eval", run, "--search", "1"), "two tokens of the validation text", codes=(2,))
    assert RunFolder.open(run).results == before


def test_a_dynamic_evaluation_says_which_one_it_replaces(run: Path) -> None:
    assert here("dynamic-eval", run, "--split", "valid", "--lr", "0.003").returncode == 0
    assert set(RunFolder.open(run).results["dynamic"]) & {"valid", "test"} == {"valid"}
    earlier = RunFolder.open(run).results["dynamic"]["valid"]["perplexity"]
    done = here("dynamic-eval", run, "--lr", "0.001")
    said = f"in place of the dynamic evaluation of finetune with lr 0.003: valid {earlier:.2f}"
    assert said in done.stderr.splitlines()
    assert said in (run / "log.txt").read_text(encoding="utf-8")


def test_search_and_the_old_defect(run: Path) -> None:
    searched = here("dynamic-eval", run, "--search", "300", "--json")
    found = json.loads(searched.stdout)
    best = found["settings"]
    assert f"search: best with --lr {best['lr']!r} --lamb {best['lamb']!r}" in searched.stderr
    losses = [trial["loss_nats"] for trial in found["search"]]
    assert losses == sorted(losses)
    assert len(losses) >= 3
    assert {"valid", "test"} <= set(found)
    before = (run / "results.json").read_text()
    done = here("dynamic-eval", run, "--keep-weight-drop", "--json")
    assert done.returncode == 0, done.stderr
    assert (run / "results.json").read_text() == before, "the measurement of a defect was recorded as a result"


def test_generate_is_repeatable(trained: Path) -> None:
    texts = [here("generate", trained, "--words", "20", "--seed", seed, "--json").stdout for seed in ("1", "1", "2")]
    one, again, other = (json.loads(text)["text"] for text in texts)
    assert one == again != other
    assert json.loads(texts[0])["words_per_s"] > 0


def test_the_processor_may_be_given_by_its_number(trained: Path) -> None:
    done = [here("generate", trained, "--words", "5", "--json", "--device", device) for device in ("cpu", "cpu:0")]
    one, other = (json.loads(each.stdout)["text"] for each in done)
    assert one == other


def test_closed_streams_are_no_error(trained: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -m highrank runs {shlex.quote(str(trained))}"
    done = subprocess.run(["sh", "-c", f"{program} >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "encoding", "shown"),
    [
        (os.fsdecode(b"run-\xff"), "utf-8:strict", r"run-\udcff"),
        ("run-日", "cp1252", r"run-\u65e5"),
        ("run-日", "utf-8", "run-日"),
    ],
)
def test_what_the_output_cannot_hold_is_spelt_out(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str, shown: str
) -> None:
    run = tmp_path / name
    run.symlink_to(trained)
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run(command("doctor", run), capture_output=True, check=False)
    assert done.stderr == b""
    assert shown in done.stdout.decode()


def test_an_interrupt_before_workers_are_started(monkeypatch: pytest.MonkeyPatch, small_text: Path) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("highrank.cli.main.launch", interrupted)
    done = here("train", RECIPE, "--data", small_text, "--workers", "2")
    signal.signal(signal.SIGINT, before)
    assert done == (130, "", "highrank: stopped\n")


def test_results_are_those_of_the_last_model_and_exact(small_text: Path, tmp_path: Path) -> None:
    """A dynamic evaluation of the trained model is not shown as that of the fine-tuned one."""
    run = tmp_path / "run"
    common = ["--data", small_text, "--device", "cpu"]
    assert here("train", RECIPE, *common, "--out", run).returncode == 0
    assert here("dynamic-eval", run).returncode == 0
    recorded = json.loads((run / "results.json").read_text())
    assert recorded["dynamic"]["stage"] == "train"
    assert here("evaluate", run, "--batch", "3").returncode == 0
    assert json.loads((run / "results.json").read_text()) == recorded, "an evaluation that drops text was recorded"

    done = here("run", RECIPE, *common, "--out", run, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    dynamic = json.loads((run / "results.json").read_text())["dynamic"]
    assert dynamic["stage"] == "finetune"
    assert {"valid", "test"} <= set(dynamic)
    again = json.loads(here("run", RECIPE, *common, "--out", run, "--resume", "--json").stdout)
    assert again == json.loads(done.stdout)


def test_settings_that_a_run_may_change_on_the_way(small_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = [RECIPE, "--data", small_text, "--out", run, "--device", "cpu"]
    assert here("train", *common).returncode == 0
    done = here("train", *common, "--resume", "--set", "finetune.lr=5", "--set", "dynamic.lamb=0.5")
    assert done.returncode == 0, done.stderr
    assert "finetune.lr 10.0 -> 5.0; dynamic.lamb 0.02 -> 0.5" in (run / "log.txt").read_text()
    assert here("finetune", run, "--set", "finetune.lr=3").returncode == 0
    assert "lr = 3.0" in (run / "config.toml").read_text()
    one_line(here("finetune", run, "--resume", "--set", "train.batch=3"), "can change [finetune], [dynamic], ")


def test_a_second_interrupt_at_the_end_is_ignored() -> None:
    """The first one arrives in the work, the second while the interpreter takes down what was there."""
    program = (
        "import atexit, os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
        "from highrank.cli import main, runs\n"
        "def interrupt(*_): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.2)\n"
        "atexit.register(interrupt)\n"
        "runs.run = interrupt\n"
        "sys.exit(main.main(['runs']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "highrank: stopped\n")


@pytest.mark.parametrize("words", ["runs RUN --json", "generate RUN --words 3000 --device cpu"])
def test_a_reader_that_has_gone(words: str, trained: Path) -> None:
    """Of few words, which are written at the end, and of more than a buffer holds."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    arguments = command(*(trained if word == "RUN" else word for word in words.split()))
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(arguments, stdout=write_end, stderr=subprocess.PIPE, env=buffered, timeout=300, check=False)
    os.close(write_end)
    assert done.returncode == 1
    assert b"Errno" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("words", ["runs RUN", "generate RUN --words 3000 --device cpu"])
def test_an_output_on_a_full_disk_is_one_line(words: str, trained: Path) -> None:
    arguments = command(*(trained if word == "RUN" else word for word in words.split()))
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, env=buffered, timeout=300, check=False, text=True
        )
    assert (done.returncode, done.stderr) == (1, "highrank: [Errno 28] No space left on device\n")
