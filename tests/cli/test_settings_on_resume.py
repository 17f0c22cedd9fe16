"""What a command may change of a run that is there: of stages on their way something, of those at their end nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.processes import RECIPE, Done, here, one_line
from benchmarks.same_bits import checksums, compare, damaged_files
from highrank.runs import RunFolder, read_config
from highrank.runs.checkpoint import checkpoint_folders

SETTINGS = ["data.train_tokens=1500", "data.heldout_tokens=300", "train.epochs=2", "finetune.epochs=1", "finetune.lr=3"]


def setting(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture(scope="module")
def whole(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, fine-tuned and dynamically evaluated, with the settings above."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    options = [*setting(*SETTINGS), "--out", run, "--device", "cpu", "--data", small_text]
    done = here("run", RECIPE, *options)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def resumed(run: Path, small_text: Path) -> Callable[..., Done]:
    """``train`` or ``run`` with --resume, and other settings on top of those that the run was made with."""

    def resume(command: str, *overrides: str) -> Done:
        options = ["--out", run, "--device", "cpu", "--data", small_text, "--resume"]
        return here(command, RECIPE, *setting(*SETTINGS, *overrides), *options)

    return resume


def not_ended(run: Path, stage: str) -> None:
    """As if the process had been killed before its last checkpoint."""
    shutil.rmtree(checkpoint_folders(run / stage)[0])
    (run / "results.json").unlink()


@pytest.mark.parametrize("command", ["train", "run"])
def test_the_text_need_not_be_said_again(command: str, run: Path) -> None:
    not_ended(run, "train")
    done = here(command, RECIPE, *setting(*SETTINGS), "--out", run, "--device", "cpu", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming train" in done.stderr
    other = here(command, RECIPE, "--out", run.parent / "other", "--device", "cpu", "--resume")
    one_line(other, "the corpus 'small-text' was not found", codes=(1,))


def test_settings_of_a_training_at_its_end_stay(run: Path, resumed: Callable[..., Done]) -> None:
    before = (run / "config.toml").read_bytes()
    done = resumed("train", "train.lr=7", "train.clip=0.5")
    assert done.returncode == 0, done.stderr
    said = "training has come to its end: train.lr stays 20.0 (asked for: 7.0), train.clip stays 0.25 (asked for: 0.5)"
    assert said in done.stderr.splitlines()
    assert (run / "config.toml").read_bytes() == before
    assert "settings changed" not in (run / "log.txt").read_text()


def test_the_end_is_known_before_it_is_in_the_results(run: Path, resumed: Callable[..., Done]) -> None:
    shutil.rmtree(run / "finetune")
    (run / "results.json").unlink()  # as if killed between the last checkpoint and the result
    done = resumed("train", "train.lr=7")
    assert "train.lr stays 20.0 (asked for: 7.0)" in done.stderr
    assert RunFolder.open(run).config.train.lr == 20.0


def test_settings_of_a_fine_tuning_at_its_end_stay(run: Path, resumed: Callable[..., Done]) -> None:
    before = (run / "config.toml").read_bytes()
    for command in ("train", "run"):
        done = resumed(command, "finetune.lr=10")
        assert done.returncode == 0, done.stderr
        said = "fine-tuning has come to its end: finetune.lr stays 3.0 (asked for: 10.0)"
        assert said in done.stderr.splitlines()
        assert (run / "config.toml").read_bytes() == before


def test_settings_of_a_stage_on_its_way_change_and_the_user_sees_it(run: Path, resumed: Callable[..., Done]) -> None:
    shutil.rmtree(run / "finetune")
    not_ended(run, "train")
    done = resumed("train", "train.lr=7", "finetune.lr=5")
    assert done.returncode == 0, done.stderr
    said = "settings changed: train.lr 20.0 -> 7.0; finetune.lr 3.0 -> 5.0"
    assert said in done.stderr.splitlines()
    assert said in (run / "log.txt").read_text()
    config = RunFolder.open(run).config
    assert (config.train.lr, config.finetune.lr) == (7.0, 5.0)


def test_settings_that_are_not_said_again_stay(run: Path, small_text: Path) -> None:
    shutil.rmtree(run / "finetune")
    not_ended(run, "train")
    before = (run / "config.toml").read_bytes()
    unsaid = [override for override in SETTINGS if not override.startswith("finetune.lr")]
    done = here("train", RECIPE, *setting(*unsaid), "--out", run, "--device", "cpu", "--data", small_text, "--resume")
    assert done.returncode == 0, done.stderr
    recipe = read_config(RECIPE).finetune.lr
    said = f"finetune.lr stays 3.0 (the recipe has {recipe}): --set changes what a run was started with"
    assert said in done.stderr.splitlines()
    assert (run / "config.toml").read_bytes() == before


def test_all_settings_that_may_not_change_are_named_and_no_other(run: Path, resumed: Callable[..., Done]) -> None:
    not_ended(run, "train")
    before = checksums(run)
    line = one_line(resumed("train", "train.lr=7", "dropout.weight=0.5", "train.nonmono=3"), "other settings")
    assert "(dropout.weight = 0.3, now 0.5; train.nonmono = 1, now 3)" in line
    assert checksums(run) == before


def test_other_settings_for_a_fine_tuning_at_its_end_are_refused(run: Path, small_text: Path) -> None:
    before = checksums(run)
    tune = ["finetune", run, "--device", "cpu", "--data", small_text]
    said = "fine-tuning has come to its end: finetune.epochs stays 1 (asked for: 2)"
    one_line(here(*tune, "--resume", *setting("finetune.epochs=2")), said, f"remove {run / 'finetune'}")
    one_line(here(*tune, *setting("finetune.epochs=2")), "exists already; go on with --resume")
    assert checksums(run) == before
    assert here(*tune, "--resume", *setting("finetune.epochs=1")).returncode == 0, "what it has already is no change"

    shutil.rmtree(run / "finetune")
    assert here(*tune, *setting("finetune.epochs=2")).returncode == 0
    tuned = RunFolder.open(run)
    assert tuned.config.finetune.epochs == 2
    records = [(r["event"], r["step"]) for r in tuned.metrics() if r["stage"] == "finetune"]
    assert len(records) == len(set(records)), "what the removed one had recorded is recorded still"

    for stage in ("finetune", "train"):
        shutil.rmtree(run / stage)
    before = checksums(run)
    one_line(here(*tune, *setting("finetune.epochs=3")), "no trained model to fine-tune")
    assert checksums(run) == before


def test_what_was_measured_of_a_fine_tuning_that_was_removed_is_forgotten(run: Path, small_text: Path) -> None:
    """Else the new one would count as ended before it is."""
    from highrank.data import load_corpus
    from highrank.train import Machine, train_stage

    class Stopping:
        def progress(self, *arguments: object, **options: object) -> None: ...

        def message(self, text: str) -> None:
            if "starting at" in text:
                raise KeyboardInterrupt

    shutil.rmtree(run / "finetune")
    opened = RunFolder.open(run)
    corpus = load_corpus(small_text)
    with pytest.raises(KeyboardInterrupt):
        train_stage(opened, "finetune", corpus, Machine(display=Stopping()))
    assert set(opened.results) == {"train"}
    done = here("finetune", run, "--resume", *setting("finetune.lr=5"), "--device", "cpu", "--data", small_text)
    assert done.returncode == 0, done.stderr
    assert "settings changed: finetune.lr 3.0 -> 5.0" in done.stderr.splitlines()


def test_a_run_begun_on_a_gpu_goes_on_without_one(run: Path, resumed: Callable[..., Done], small_text: Path) -> None:
    for old, new in (
        ("micro_batch = 3", "micro_batch = 6"),
        ('precision = "float32"', 'precision = "bfloat16"'),
        ('recurrence = "torch"', 'recurrence = "triton"'),
        ("cuda_graphs = false", "cuda_graphs = true"),
    ):
        text = (run / "config.toml").read_text()
        assert old in text
        (run / "config.toml").write_text(text.replace(old, new))
    same, here_too = ["train.micro_batch=6", "train.precision=bfloat16"], ["train.cuda_graphs=false"]
    changed = "settings changed: train.cuda_graphs true -> false"

    shutil.rmtree(run / "finetune")
    tune = ["finetune", run, "--device", "cpu", "--data", small_text]
    one_line(here(*tune), "--set train.cuda_graphs=false", codes=(2,))
    before = checksums(run)
    one_line(here(*tune, *setting(*here_too)), "--set train.recurrence=torch", codes=(2,))
    assert checksums(run) == before
    done = here(*tune, *setting(*here_too, "train.recurrence=torch"))
    assert done.returncode == 0, done.stderr

    begun = (run / "config.toml").read_text().replace("cuda_graphs = false", "cuda_graphs = true")
    (run / "config.toml").write_text(begun)
    for stage in ("finetune", "train"):
        shutil.rmtree(run / stage)
    one_line(resumed("train", *same), "--set train.cuda_graphs=false", codes=(2,))
    done = resumed("train", *same, *here_too)
    assert done.returncode == 0, done.stderr
    assert changed in done.stderr.splitlines()
    assert changed in (run / "log.txt").read_text()


def test_a_run_at_its_end_is_not_refused_what_its_stages_need(run: Path, resumed: Callable[..., Done]) -> None:
    """As where it was begun on a GPU, or by a version that asked for less."""
    text = (run / "config.toml").read_text()
    text = text.replace('precision = "float32"', 'precision = "bfloat16"')
    (run / "config.toml").write_text(text.replace('recurrence = "torch"', 'recurrence = "triton"'))
    before = checksums(run)
    done = resumed("run", "train.precision=bfloat16")
    assert done.returncode == 0, done.stderr
    assert checksums(run) == before


def test_dynamic_evaluation_is_made_again_with_other_settings(run: Path, resumed: Callable[..., Done]) -> None:
    """Its results hold the settings that they were made with, so these may change at any time."""
    before = RunFolder.open(run).results["dynamic"]
    for overrides, changed, name, value in (
        (["dynamic.lamb=0.5"], "dynamic.lamb 0.02 -> 0.5", "lamb", 0.5),
        (["dynamic.lamb=0.5", "dynamic.batch=5"], "dynamic.batch 10 -> 5", "statistics_batch", 5),
    ):
        done = resumed("run", *overrides)
        assert done.returncode == 0, done.stderr
        assert f"settings changed: {changed}" in done.stderr.splitlines()
        after = RunFolder.open(run).results["dynamic"]
        assert {**after, **after["settings"]}[name] == value
        assert after["valid"]["loss_nats"] != before["valid"]["loss_nats"]
        before = after


def test_an_imported_run_is_not_changed_by_what_is_refused(run: Path, resumed: Callable[..., Done]) -> None:
    for path in checkpoint_folders(run / "train"):
        shutil.rmtree(path)
    for name in ("metrics.jsonl", "results.json"):
        (run / name).unlink()
    before = checksums(run)
    one_line(resumed("train", "train.lr=7"), "no checkpoint of train to go on from")
    assert checksums(run) == before


def test_training_goes_on_for_more_epochs_as_if_they_had_been_planned(small_text: Path, tmp_path: Path) -> None:
    short, planned = tmp_path / "short", tmp_path / "planned"

    def train(out: Path, epochs: int, *options: str) -> Done:
        settings = setting(*SETTINGS, f"train.epochs={epochs}")
        return here("train", RECIPE, *settings, "--device", "cpu", "--data", small_text, "--out", out, *options)

    assert train(planned, 3).returncode == train(short, 2).returncode == 0
    assert here("evaluate", short, "--data", small_text, "--device", "cpu").returncode == 0
    done = train(short, 3, "--resume")
    assert done.returncode == 0, done.stderr
    assert "settings changed: train.epochs 2 -> 3" in done.stderr
    assert compare(short, planned).different == []
    assert damaged_files(short) == []
    results = RunFolder.open(short).results["train"]
    assert results["epochs"] == 3
    assert "test" not in results, "it was of the shorter training"
    fewer = train(short, 1, "--resume")
    assert "training has come to its end: train.epochs stays 3 (asked for: 1)" in fewer.stderr
    for checkpoint in checkpoint_folders(short / "train"):
        shutil.rmtree(checkpoint)
    one_line(train(short, 4, "--resume"), "no checkpoint to train longer from")


def test_training_is_not_longer_once_fine_tuning_has_begun(run: Path, resumed: Callable[..., Done]) -> None:
    before = checksums(run)
    one_line(resumed("train", "train.epochs=3"), "fine-tuning has begun", f"remove {run / 'finetune'}")
    assert checksums(run) == before


def test_epochs_stay_where_the_rate_depends_on_them(small_text: Path, tmp_path: Path) -> None:
    options = [*setting(*SETTINGS, "train.schedule=linear"), "--data", small_text, "--out", tmp_path / "run"]
    assert here("train", RECIPE, *options, "--device", "cpu").returncode == 0
    more = [*options, "--set", "train.epochs=3", "--resume", "--device", "cpu"]
    one_line(here("train", RECIPE, *more), "the run was started with other settings (train.epochs = 2, now 3)")
