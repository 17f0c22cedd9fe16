"""A study survives interruptions, keeps what it has, and runs anew what has changed: on a model of a test's size."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import study
from benchmarks.studies.plan import Study, Trial, read_study
from benchmarks.studies.record import Record
from benchmarks.studies.session import Session
from benchmarks.studies.trial import Command, Place
from highrank.cli.main import main as highrank_main
from highrank.errors import UserError
from highrank.runs import RunFolder

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "tests" / "train" / "tiny.toml"
SMALL = ("data.heldout_tokens=200", "train.epochs=2", "finetune.epochs=1")
VARIANTS = {"two": ["model.num_components=2"], "one": ["model.head=softmax"]}
OF_THE_MACHINE = ("elapsed_s", "cpu_s", "commits", "date")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the trials have: the order of sums is a matter of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_study(path: Path, *, stages: list[str], overrides: tuple[str, ...] = SMALL, **more: Any) -> Path:
    values = {"title": "Tiny", "recipe": str(RECIPE), "stages": stages, "seeds": [1, 2], "overrides": list(overrides)}
    values |= {"variants": [{"name": name, "text": "its text", "overrides": own} for name, own in VARIANTS.items()]}
    lines = [f"{name} = {json.dumps(value)}" for name, value in (values | more).items() if name != "variants"]
    for variant in (values | more)["variants"]:
        lines += ["[[variants]]", *(f"{name} = {json.dumps(value)}" for name, value in variant.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def finish_here(place: Place) -> dict[str, Any]:
    """A trial by its own commands, in this process: what a session does, without the seconds of starting Python."""
    place.take_up()
    while (command := place.next_command()) is not None:
        place.began(command)
        assert highrank_main(command.words[3:]) == 0
        place.ended(command, 0, 1.0)
    return place.row()


def comparable(value: Any) -> Any:
    """Of rows: what does not depend on the hour and the machine."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items() if name not in OF_THE_MACHINE}
    return [comparable(part) for part in value] if isinstance(value, list) else value


def call(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.study", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_interrupted_and_continued_has_the_rows_of_one_that_was_not(
    small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path / "tiny.toml", stages=["train"], overrides=(*SMALL, "train.epochs=4"))
    out, path = tmp_path / "out", tmp_path / "study_tiny.json"
    words = [file, "--data", small_text, "--out", out, "--jobs", "2", "--results", tmp_path]
    process = call(*words)
    first = ["two-seed1", "one-seed1"]
    ends = time.monotonic() + 60
    while not any(records.stat().st_size for records in out.glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "4 trials are left; the same call goes on" in said
    assert any("saved train at update" in (out / f"{name}.log").read_text(encoding="utf-8") for name in first)
    assert not path.exists()

    process = call(*words, "--seeds", "1", "--only", "two")
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "1 of 1 trials to run" in printed
    # The other one by the same commands, in this process: a process takes seconds to start.
    trials = read_study(file).trials(seeds=[1])
    Record(path, read_study(file)).add_row(finish_here(Place(trials[1], out, str(small_text))))
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content["rows"]
    assert [(row["variant"], row["seed"]) for row in rows] == [("two", 1), ("one", 1)]
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert comparable(rows) == comparable([finish_here(Place(trial, undisturbed, str(small_text))) for trial in trials])
    assert all(row["cpu_s"]["train"] > 0 for row in rows)
    assert len({row["results"]["train"]["test"]["perplexity"] for row in rows}) == 2
    named = json.dumps([[row, content["about"]] for row in comparable(rows)] + [row["commits"] for row in rows])
    named = named.replace(str(RECIPE), "")
    assert not any(str(folder) in named for folder in (tmp_path, small_text, ROOT, Path.home()))

    capsys.readouterr()
    assert study.main([*map(str, words), "--dry-run"]) == 0
    planned = [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [name for name, *_ in planned] == ["two-seed1", "one-seed1", "two-seed2", "one-seed2"]
    assert [state for _, state, *_ in planned] == ["done", "done", "not", "not"]


@pytest.fixture
def trained(small_text: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run that was trained outside the study, under the name of its trial."""

    def train(trial: Trial, out: Path, *more: str) -> Path:
        settings = [word for override in (*trial.overrides, *more) for word in ("--set", override)]
        run = out / trial.name
        words = ["train", trial.recipe, "--data", small_text, "--out", run, "--device", "cpu", *settings]
        assert highrank_main([str(word) for word in words]) == 0
        return run

    return train


def test_a_run_from_elsewhere_is_taken_up(small_text: Path, tmp_path: Path, trained: Callable[..., Path]) -> None:
    """Trained with the study's settings; those of later stages may differ, and do."""
    overrides = (*SMALL, "finetune.lr=5", "dynamic.lamb=0.05")
    file = write_study(tmp_path / "tiny.toml", stages=["train", "finetune", "dynamic-eval"], overrides=overrides)
    trial = read_study(file).trials()[0]
    run = trained(trial, tmp_path, "finetune.lr=10", "dynamic.lamb=0.02")
    before = RunFolder.open(run).results["train"]
    row = finish_here(Place(trial, tmp_path, str(small_text)))
    assert {name: row["results"]["train"][name] for name in before} == before, "it was trained again"
    assert RunFolder.open(run).config == trial.config
    assert row["settings"]["finetune"]["lr"] == 5
    assert row["results"]["dynamic"]["settings"]["lamb"] == 0.05
    assert row["results"]["dynamic"]["stage"] == "finetune"
    assert {split for split in row["results"]["dynamic"] if split in ("valid", "test")} == {"valid", "test"}
    assert row["cpu_s"] == {"train": None, "finetune": 1.0, "dynamic-eval": 2.0}

    # The rate of fine-tuning is changed once more: the trained model stays, what came of it goes.
    file = write_study(tmp_path / "tiny.toml", stages=["train", "finetune"], overrides=(*SMALL, "finetune.lr=2"))
    trial = read_study(file).trials()[0]
    again = finish_here(Place(trial, tmp_path, str(small_text)))
    assert again["results"]["train"] == row["results"]["train"]
    assert again["results"]["finetune"]["valid_loss_nats"] != row["results"]["finetune"]["valid_loss_nats"]
    assert again["cpu_s"] == {"train": None, "finetune": 1.0}


def test_a_row_of_other_settings_is_run_anew(small_text: Path, tmp_path: Path, trained: Callable[..., Path]) -> None:
    file = write_study(tmp_path / "tiny.toml", stages=["train"])
    before = read_study(file)
    kept, changes = before.trials()[0], before.trials()[1]
    record = Record(tmp_path / "study_tiny.json", before)
    for trial in (kept, changes):
        record.add_row(finish_here(Place(trial, tmp_path, str(small_text))))
    assert len(record.rows()) == 2

    variants = [
        {"name": "two", "text": "another text", "overrides": VARIANTS["two"]},
        {"name": "one", "text": "", "overrides": [*VARIANTS["one"], "train.lr=7"]},
    ]
    after = read_study(write_study(file, stages=["train"], variants=variants))
    record = Record(record.path, after)
    same, changed = after.trials()[:2]
    assert record.row(same) is not None
    assert record.row(changed) is None
    place = Place(changed, tmp_path, str(small_text))
    assert "set aside as one-seed1.aside-1" in place.take_up()
    assert (tmp_path / "one-seed1.aside-1" / "config.toml").is_file()
    assert place.cpu_s("train") is None
    row = finish_here(place)
    assert row["cpu_s"]["train"] == 1.0
    record.add_row(row)
    assert [row["settings"]["train"]["lr"] for row in record.rows()] == [20.0, 7.0]
    assert Record(record.path, after).row(after.trial(changed.variant, 2)) is None

    longer = read_study(write_study(file, stages=["train", "finetune"], variants=variants))
    assert Record(record.path, longer).row(longer.trials()[0]) is None, "fine-tuning is still to come"


def test_times_and_what_would_run(small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_study(tmp_path / "tiny.toml", stages=["train", "finetune", "dynamic-eval"])
    words = [str(file), "--data", str(small_text), "--out", str(tmp_path / "out"), "--results", str(tmp_path)]
    assert study.main([*words, "--dry-run"]) == 0
    assert "4 not timed" in capsys.readouterr().out
    assert study.main([*words, "--time", "--repeats", "2"]) == 0
    assert "ms an update" in capsys.readouterr().out
    times = json.loads((tmp_path / "study_tiny.json").read_text(encoding="utf-8"))["times"]
    assert times.keys() == VARIANTS.keys()
    for found in times.values():
        assert 0 < found["update_s"]["p20_s"] <= found["update_s"]["median_s"] <= found["update_s"]["p80_s"] < 10
        assert all(seconds > 0 for seconds in found["expected_cpu_s"].values())
        # Two epochs of training, one of fine-tuning, and the same evaluation after each.
        assert found["expected_cpu_s"]["finetune"] < found["expected_cpu_s"]["train"]
    assert study.main([*words, "--dry-run", "--only", "one", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "one-seed2" in printed
    assert "1 of 1 trials to run" in printed
    assert "two-" not in printed
    assert "not timed" not in printed
    assert not (tmp_path / "out").exists()
    write_study(file, stages=["train"], overrides=(*SMALL, "train.batch=12"))
    assert study.main([*words, "--dry-run"]) == 0
    assert "4 not timed" in capsys.readouterr().out, "times of other settings say nothing"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stages": ["finetune"]}, "stages: expected one of: train; train, finetune;"),
        ({"stages": ["train", "publish"]}, "publish"),
        ({"seeds": []}, "seeds: expected at least one"),
        ({"seeds": [1, 1]}, "seeds: expected at least one and each once"),
        ({"seeds": [-1]}, "train.seed"),
        ({"recipe": "pen"}, "recipe 'pen': not known; did you mean 'penn'?"),
        ({"seed": 1}, "seed"),
        ({"overrides": ["train.epoch=3"]}, "unknown key train.epoch; did you mean 'epochs'?"),
        ({"overrides": ["train.seed=3"]}, "the seeds of a study stand in its list of seeds"),
        ({"variants": []}, "missing required field `variants`"),
        ({"variants": [{"name": "a", "text": ""}] * 2}, "variants: expected at least one and each once"),
        ({"variants": [{"name": "a/b", "text": ""}]}, "expected a name of small letters"),
        ({"variants": [{"name": "a"}]}, "text"),
        ({"variants": [{"name": "a", "text": "", "overrides": ["train.lr=much"]}]}, "variant a:"),
    ],
)
def test_a_bad_study_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], complaint: str
) -> None:
    file = write_study(tmp_path / "bad.toml", **({"stages": ["train"]} | change))
    assert complaint in one_line(capsys, file)


@pytest.mark.parametrize("content", ["title = ", "a" + ".a" * 40_000 + " = 1", "title = '" + "x" * 70_000 + "'"])
def test_a_file_that_is_no_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content, encoding="utf-8")
    assert str(file) in one_line(capsys, file)
    file.write_bytes(b"title = '\xff'")
    assert "not valid TOML" in one_line(capsys, file)
    assert "no such file" in one_line(capsys, tmp_path / "none.toml")


def test_wrong_words_and_damaged_results_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_study(tmp_path / "tiny.toml", stages=["train"])
    assert "--only tow: no such variant; did you mean 'two'?" in one_line(capsys, file, "--only", "tow")
    assert "--seeds 3: not a seed of the study" in one_line(capsys, file, "--seeds", "3")
    for content in ("{", '{"rows": 3}', '{"rows": [{"variant": "one"}]}', '{"times": {"one": {}}}'):
        (tmp_path / "study_tiny.json").write_text(content, encoding="utf-8")
        assert "study_tiny.json: damaged" in one_line(capsys, file, code=1)


def one_line(capsys: pytest.CaptureFixture[str], file: Path, *words: str, code: int | None = None) -> str:
    arguments = [str(file), "--data", "nowhere", "--out", str(file.parent / "out"), "--results", str(file.parent)]
    returned = study.main([*arguments, "--dry-run", *words])
    assert returned == code if code is not None else returned in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("study: ")
    return line


class Pretended(Place):
    """A trial whose commands are small programs; what was done is in ``done``."""

    programs: tuple[str, ...] = ()

    def take_up(self) -> str:
        return ""

    def next_command(self) -> Command | None:
        done = len([note for note in self._notes() if note.get("exit_code") == 0])
        if done == len(self.programs):
            return None
        return Command("train", [sys.executable, "-S", "-c", self.programs[done]])


@pytest.fixture
def pretended(tmp_path: Path) -> Callable[..., Pretended]:
    plan: Study = read_study(write_study(tmp_path / "tiny.toml", stages=["train"], seeds=list(range(1, 9))))

    def make(seed: int, *programs: str) -> Pretended:
        place = Pretended(plan.trial(plan.variants[0], seed), tmp_path, "nowhere")
        object.__setattr__(place, "programs", programs)
        return place

    return make


SLEEP = "import time; time.sleep(60)"


def test_a_trial_that_fails_leaves_the_others(pretended: Callable[..., Pretended], capfd: Any) -> None:
    session, finished = Session(2), []
    places = [
        pretended(1, "1", "2"),
        pretended(2, "raise SystemExit('no such thing')"),
        pretended(3, "sum(range(9**6))"),
    ]
    session.run(places, finished.append)
    assert sorted(place.trial.seed for place in finished) == [1, 3]
    assert session.failed == ["two-seed2"]
    assert "two-seed2: given up: train ended with 1: no such thing" in capfd.readouterr().err
    assert 0 < (places[2].cpu_s("train") or 0) < 30
    assert session.stopped_by == 0


def test_a_folder_that_is_no_run_is_left_alone(small_text: Path, tmp_path: Path, capfd: Any) -> None:
    plan = read_study(write_study(tmp_path / "tiny.toml", stages=["train"]))
    place = Place(plan.trials()[0], tmp_path, str(small_text))
    place.run.mkdir()
    (place.run / "notes.txt").touch()
    session = Session(1)
    session.run([place], pytest.fail)
    assert session.failed == ["two-seed1"]
    assert "not a run folder" in capfd.readouterr().err
    assert [path.name for path in place.run.iterdir()] == ["notes.txt"]


def test_an_error_of_ours_leaves_no_process_behind(pretended: Callable[..., Pretended]) -> None:
    sleeps, quick = pretended(1, SLEEP), pretended(2, "1")

    def broken(place: Place) -> None:
        raise RuntimeError("broken")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="broken"):
        Session(2).run([sleeps, quick], broken)
    assert time.monotonic() - began < 30
    assert sleeps.cpu_s("train") is not None, "its end was waited for"


def test_the_minutes_stop_what_runs_and_start_nothing_more(pretended: Callable[..., Pretended]) -> None:
    before = signal.getsignal(signal.SIGINT)
    session, began = Session(1, minutes=0.5 / 60), time.monotonic()
    session.run([pretended(1, SLEEP), pretended(2, SLEEP)], pytest.fail)
    assert time.monotonic() - began < 30
    assert session.stopped_by == signal.SIGALRM
    assert session.failed == []
    assert not pretended(2).log.exists(), "the second was not started"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_is_asked_once_by_ctrl_c_at_a_terminal(pretended: Callable[..., Pretended], tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole group; a second one would end a training before it has saved."""
    counts = (
        "import os, signal, time; asked = []; signal.signal(signal.SIGINT, lambda *_: asked.append(1)); "
        "open('asked', 'w').close(); os.rename('asked', 'ready'); ends = time.monotonic() + 60\n"
        "while not asked and time.monotonic() < ends: time.sleep(0.01)\n"
        "time.sleep(0.5); raise SystemExit(10 + len(asked))"
    )
    program = (
        "import sys; from pathlib import Path; from tests.benchmarks.test_study import *\n"
        f"plan = read_study(Path({str(tmp_path / 'tiny.toml')!r}))\n"
        f"place = Pretended(plan.trial(plan.variants[0], 1), Path({str(tmp_path)!r}), 'nowhere')\n"
        f"object.__setattr__(place, 'programs', ({counts!r},))\n"
        "Session(1).run([place], print)\n"
    )
    pretended(1)  # writes the study
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, process_group=0)
    ends = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < ends
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 0
    notes = [json.loads(line) for line in (tmp_path / "two-seed1.costs.jsonl").read_text().splitlines()]
    assert notes[-1]["exit_code"] == 11


def test_the_studies_of_the_repository_can_be_read() -> None:
    for file in (ROOT / "benchmarks" / "studies").glob("*.toml"):
        assert read_study(file).name == file.stem


def test_the_ablation_compares_models_of_one_size() -> None:
    from highrank.data.catalog import CATALOG
    from highrank.runs import find_recipe, parameter_count, read_config

    words = CATALOG["penn"].vocabulary_size
    size = parameter_count(read_config(find_recipe("penn-small")), words)
    plan = read_study(ROOT / "benchmarks" / "studies" / "ablation.toml")
    sizes = {trial.variant.name: parameter_count(trial.config, words) for trial in plan.trials(seeds=[1])}
    assert len(sizes) == 6
    assert all(abs(each / size - 1) < 0.01 for each in sizes.values()), sizes


def test_costs_that_nobody_counted_are_not_known(small_text: Path, tmp_path: Path) -> None:
    file = write_study(tmp_path / "tiny.toml", stages=["train"])
    place = Place(read_study(file).trials()[0], tmp_path, str(small_text))
    command = Command("train", [])
    assert place.cpu_s("train") is None
    place.began(command)
    place.ended(command, 130, 2.5)
    place.began(command)
    assert place.cpu_s("train") is None, "the second one was killed, or is still at work"
    place.ended(command, 0, 3.5)
    assert place.cpu_s("train") == 6.0
    place.costs.write_text("not JSON\n", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        place.cpu_s("train")
    shutil.rmtree(tmp_path, ignore_errors=True)
