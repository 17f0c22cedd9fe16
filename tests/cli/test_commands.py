"""The commands as a user calls them: what they print, and what bad input gets: one line, an exit code, no loss."""

import json
import math
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import here, one_line
from highrank import load
from highrank.runs import RunFolder, cost, find_recipe, recipe_names
from highrank.runs.cost import estimate
from highrank.train.stages import corpus_for

RECIPE = Path(__file__).parent.parent / "train" / "tiny.toml"


def highrank(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "highrank", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """The command failed with one line on standard error (after notices) that holds all ``words``."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("highrank: "), done.stderr
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"


@pytest.fixture(scope="module")
def trained(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run: trained, fine-tuned, dynamically evaluated."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = highrank("run", RECIPE, "--data", small_text, "--out", out, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["stage"] for row in result["stages"]] == ["trained", "fine-tuned", "dynamic evaluation"]
    assert all(row["test_perplexity"] > 1 and row["valid_perplexity"] > 1 for row in result["stages"])
    assert result["sample"].strip()
    return out


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


def test_evaluate_agrees_with_the_recorded_loss_and_the_python_api(trained: Path, small_text: Path) -> None:
    done = highrank("evaluate", trained, "--split", "valid", "--batch", "4", "--stage", "train", "--json")
    result = json.loads(done.stdout)
    recorded = json.loads((trained / "results.json").read_text())["train"]["valid_loss_nats"]
    assert result["loss_nats"] == pytest.approx(recorded, abs=1e-5)  # in other segments: another order of sums
    exact = json.loads(highrank("evaluate", trained, "--split", "valid", "--json").stdout)
    assert exact["tokens"] == len((small_text / "valid.txt").read_text().replace("\n", " <eos> ").split()) - 1
    paper = json.loads(highrank("evaluate", trained, "--split", "test", "--paper", "--json").stdout)
    test = json.loads(highrank("evaluate", trained, "--split", "test", "--json").stdout)
    assert paper["loss_nats"] == pytest.approx(test["loss_nats"] * test["tokens"] / (test["tokens"] + 1))
    model, vocabulary = load(trained)
    assert model.vocab_size == len(vocabulary)


def test_dynamic_evaluation_caches_its_statistics(trained: Path) -> None:
    first = highrank("dynamic-eval", trained, "--split", "valid", "--lr", "0.001", "--json")
    cached = sorted(trained.rglob("gradient-statistics-*.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in cached]
    second = highrank("dynamic-eval", trained, "--split", "valid", "--lr", "0.001", "--json")
    assert cached
    assert [path.stat().st_mtime_ns for path in sorted(trained.rglob("gradient-statistics-*"))] == stamps
    assert json.loads(first.stdout)["valid"]["loss_nats"] == json.loads(second.stdout)["valid"]["loss_nats"]


def test_damaged_statistics_are_computed_again(trained: Path) -> None:
    path = next(trained.rglob("gradient-statistics-*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    done = highrank("dynamic-eval", trained, "--split", "valid", "--json")
    assert done.returncode == 0, done.stderr
    assert "again" in done.stderr


def test_a_lost_dynamic_evaluation_is_no_result(trained: Path) -> None:
    before = RunFolder.open(trained).results
    one_line(here("dynamic-eval", trained, "--lr", "1000", "--epsilon", "1e-6"), "the loss is lost", "--lr 250")
    one_line(here("dynamic-eval", trained, "--search", "1"), "two tokens of the validation text", codes=(2,))
    assert RunFolder.open(trained).results == before


def test_a_dynamic_evaluation_says_which_one_it_replaces(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    assert here("dynamic-eval", run, "--split", "valid", "--lr", "0.003").returncode == 0
    assert set(RunFolder.open(run).results["dynamic"]) & {"valid", "test"} == {"valid"}
    earlier = RunFolder.open(run).results["dynamic"]["valid"]["perplexity"]
    done = here("dynamic-eval", run, "--lr", "0.001")
    said = f"in place of the dynamic evaluation of finetune with lr 0.003: valid {earlier:.2f}"
    assert said in done.stderr.splitlines()
    assert said in (run / "log.txt").read_text(encoding="utf-8")


def test_search_and_the_old_defect(trained: Path) -> None:
    found = json.loads(highrank("dynamic-eval", trained, "--search", "300", "--json").stdout)
    losses = [trial["loss_nats"] for trial in found["search"]]
    assert losses == sorted(losses)
    assert len(losses) >= 3
    assert {"valid", "test"} <= set(found)
    before = (trained / "results.json").read_text()
    done = highrank("dynamic-eval", trained, "--keep-weight-drop", "--json")
    assert done.returncode == 0, done.stderr
    assert (trained / "results.json").read_text() == before, "the measurement of a defect was recorded as a result"


def test_generate_is_repeatable(trained: Path) -> None:
    texts = [
        highrank("generate", trained, "--words", "20", "--seed", seed, "--json").stdout for seed in ("1", "1", "2")
    ]
    one, again, other = (json.loads(text)["text"] for text in texts)
    assert one == again != other
    assert json.loads(texts[0])["words_per_s"] > 0


def test_dry_run_writes_nothing(small_text: Path, tmp_path: Path) -> None:
    done = highrank("train", RECIPE, "--data", small_text, "--dry-run", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["parameters"] > 0
    assert result["configuration"]["train"]["batch"] == 6
    assert not list(tmp_path.iterdir())
    done = here(
        "train", RECIPE, "--data", small_text, "--dry-run", "--json", "--workers", "2", "--out", tmp_path / "run"
    )
    assert json.loads(done.stdout)["parameters"] == result["parameters"], "said once, though of two workers"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch=9999"], "train.batch"),
        (["data.heldout_tokens=3"], "valid.txt"),
        (["train.cuda_graphs=true", "train.micro_batch=0"], "needs an NVIDIA GPU"),
    ],
)
def test_dry_run_refuses_what_training_does(overrides: list[str], words: str, small_text: Path, tmp_path: Path) -> None:
    settings = [word for override in overrides for word in ("--set", override)]
    options = ["--data", small_text, *settings, "--device", "cpu", "--out", tmp_path / "run"]
    dry = one_line(here("train", RECIPE, *options, "--dry-run"), words, codes=(1, 2))
    assert one_line(here("train", RECIPE, *options), words, codes=(1, 2)) == dry


def test_closed_streams_are_no_error(trained: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -m highrank runs {shlex.quote(str(trained))}"
    done = subprocess.run(["sh", "-c", f"{program} >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_before_workers_are_started(monkeypatch: pytest.MonkeyPatch, small_text: Path) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("highrank.cli.main.launch", interrupted)
    done = here("train", RECIPE, "--data", small_text, "--workers", "2")
    signal.signal(signal.SIGINT, before)
    assert done == (130, "", "highrank: stopped\n")


def test_dry_run_knows_the_updates_of_the_first_epoch(
    small_text: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = next(e["step"] for e in RunFolder.open(trained).metrics() if e["event"] == "validation")
    config = RunFolder.open(trained).config
    corpus = corpus_for(config, str(small_text))
    assert estimate(config, corpus)["updates_per_epoch"] == updates
    monkeypatch.setattr(cost, "DRAWN_LENGTHS", updates // 2)  # a long one, of which the mean length tells
    assert estimate(config, corpus)["updates_per_epoch"] == pytest.approx(updates, rel=0.1)


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith(("penn", "wikitext-2"))])
def test_the_papers_sizes(recipe: str, corpora: Path) -> None:
    """And what recipes promise of them."""
    folder = corpora / ("penn" if recipe.startswith("penn") else "wikitext-2")
    said = json.loads(here("train", recipe, "--data", folder, "--dry-run", "--json").stdout)
    parameters = {"penn": 21_500_620, "wikitext-2": 34_909_528}.get(recipe, said["parameters"])
    assert said["parameters"] == parameters
    memory = tomllib.loads(find_recipe(recipe).read_text())["promise"]["memory"]
    if "the estimate of --dry-run" in memory:
        assert f"about {said['memory_bytes']['total'] / 1e9:.1f} GB" in memory
        assert f"{parameters:,} parameters" in memory


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=3", ("train.lrr", "did you mean 'lr'")),
        ("trian.lr=3", ("[trian]", "did you mean 'train'")),
        ("train.lr=fast", ("train.lr", "float", "'fast'")),
        ("train.batch=0", ("train.batch", ">= 1", "got 0")),
        ("train.batch=2.5", ("train.batch", "int", "2.5")),
        ("dropout.input=1.0", ("dropout.input", "< 1.0", "1.0")),
        ("model.head=mos", ("model.head", "mixture-of-softmaxes", "'mos'")),
        ("train.micro_batch=4", ("train.micro_batch", "divisor", "6", "4")),
        ("train.cuda_graphs=true", ("train.cuda_graphs", "one pass", "3 of 6")),
        ("train.recurrence=triton", ("train.recurrence", "train.precision bfloat16", "float32")),
        ("train", ("section.key=value", "'train'")),
        ("model.num_layers=1000000", ("model.num_layers", "<= 100", "got 1000000")),
        ("train.lr=" + "[" * 5000, ("train.lr", "nested too deeply")),
        ("train.seed=0x" + "f" * 5000, ("train.seed", "too long to show")),
        ("model.head=two\nlines \x1b[31m", (r"two\nlines \x1b[31m",)),
    ],
)
def test_settings_that_cannot_be(override: str, words: tuple[str, ...], small_text: Path, tmp_path: Path) -> None:
    done = highrank("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--set", override)
    refused(done, *words, code=2)
    assert not (tmp_path / "run").exists()


def test_a_model_larger_than_the_memory(small_text: Path, tmp_path: Path) -> None:
    sizes = ["--set", "model.hidden_features=1000000", "--set", "model.embedding_features=1"]
    done = highrank("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", *sizes)
    refused(done, "not enough memory", "--dry-run")


def test_unknown_recipe(tmp_path: Path) -> None:
    refused(highrank("train", "pen", cwd=tmp_path), "'pen'", "did you mean 'penn'", code=2)
    refused(highrank("train", "none.toml", cwd=tmp_path), "none.toml", "no such file", code=2)
    (tmp_path / "broken.toml").write_text("[data\n")
    refused(highrank("train", "broken.toml", cwd=tmp_path), "broken.toml", "not valid TOML")


def test_a_run_folder_that_exists_stays_as_it_is(trained: Path, small_text: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*"))
    refused(highrank("train", RECIPE, "--data", small_text, "--out", trained), str(trained), "exists", "--resume")
    refused(highrank("finetune", trained), "finetune", "exists", "--resume")
    done = highrank("train", RECIPE, "--data", small_text, "--out", trained, "--resume", "--set", "train.nonmono=3")
    refused(done, "other settings", "train.nonmono = 1, now 3")
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*")) == before


def test_a_folder_whose_name_is_not_utf8(small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"run-\xe9")
    one_line(here("train", RECIPE, "--data", small_text, "--out", out), "expected a name in UTF-8", codes=(2,))
    assert not list(tmp_path.iterdir())


def test_not_a_run_folder(tmp_path: Path) -> None:
    refused(highrank("evaluate", tmp_path), str(tmp_path), "not a run folder")
    refused(highrank("generate", tmp_path / "none"), "not a run folder")


@pytest.mark.parametrize(
    ("split", "content", "words"),
    [
        ("valid", None, ("no valid.txt",)),
        ("test", b"", ("test.txt", "empty")),
        ("train", b"good words\nbad \xff words\n", ("train.txt", "not UTF-8", "line 2")),
        ("train", b"a b c\n", ("train.txt", "too few", "batch of 6", "a smaller train.batch or")),
        ("valid", b"in the\n", ("valid.txt", "too few", "batch of 4", "a smaller train.valid_batch or")),
    ],
)
def test_text_that_cannot_be_used(
    split: str, content: bytes | None, words: tuple[str, ...], small_text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "text"
    shutil.copytree(small_text, folder)
    (folder / f"{split}.txt").unlink()
    if content is not None:
        (folder / f"{split}.txt").write_bytes(content)
    refused(highrank("train", RECIPE, "--data", folder, "--out", tmp_path / "run"), *words)


def test_text_that_changed_since(trained: Path, small_text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(small_text, folder)
    verses = (folder / "train.txt").read_text().splitlines(keepends=True)
    (folder / "train.txt").write_text("".join([verses[0], verses[0], *verses[1:]]))  # the same words, the same order
    refused(highrank("evaluate", trained, "--data", folder), "train.txt has changed", "sha256")
    with (folder / "train.txt").open("a") as file:
        file.write("neverseenbefore\n")
    refused(highrank("evaluate", trained, "--data", folder), "vocabulary 'neverseenbefore' is new;", "--data")
    (folder / "train.txt").write_text("".join([verses[0].replace("beginning", "start"), *verses[1:]]))
    refused(highrank("evaluate", trained, "--data", folder), "changed since", "'start' is new; 'beginning' is missing")


def test_a_text_that_is_gone_is_named_by_all_commands(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    gone = tmp_path / "gone"
    facts = json.loads((run / "run.json").read_text())
    facts["corpus"]["folder"] = str(gone)
    (run / "run.json").write_text(json.dumps(facts))
    said = f"{gone}: not there any more; give the commands its new place with --data"
    assert said in here("doctor", run).stdout
    for command in ("evaluate", "finetune", "dynamic-eval", "rank", "components"):
        one_line(here(command, run, "--device", "cpu"), said)


def test_a_model_that_does_not_fit_or_is_damaged(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    words = (run / "vocabulary.txt").read_text().splitlines(keepends=True)
    (run / "vocabulary.txt").write_text("".join(words[:-1]))
    refused(highrank("generate", run), "model.safetensors", "shape")
    (run / "vocabulary.txt").write_text("".join(words))
    whole = (run / "finetune" / "model.safetensors").read_bytes()
    for length in (0, 7, 200, len(whole) - 1):
        (run / "finetune" / "model.safetensors").write_bytes(whole[:length])
        refused(highrank("generate", run), "model.safetensors", "damaged")


def test_a_disk_that_is_full(small_text: Path, tmp_path: Path) -> None:
    """The limit on the size of a file stands for the full disk: writes fail in the middle, in the same way."""
    out = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = highrank("train", RECIPE, "--data", small_text, "--out", out, "--device", "cpu", preexec_fn=limit)
    refused(done, "no space left", str(out))
    assert not list(out.rglob("checkpoint-*"))
    assert not list(out.rglob(".new-*")), "half-written files were left behind"
    done = highrank("train", RECIPE, "--data", small_text, "--out", out, "--device", "cpu", "--resume")
    assert done.returncode == 0, done.stderr


def test_a_loss_that_is_lost(small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--set", "train.lr=1e9", "--set", "train.clip=1e9"]
    done = highrank("train", RECIPE, "--data", small_text, "--out", out, *options)
    refused(done, "stopped at update", "checkpoint", "lower learning rate")
    done = highrank("train", RECIPE, "--data", small_text, "--out", tmp_path / "far", "--set", "train.lr=1e30")
    refused(done, "no checkpoint yet", str(tmp_path / "far"), "--resume", "--set train.lr=20)", "--out")
    options = ["--resume", "--set", "train.lr=20", "--set", "train.epochs=3"]
    done = highrank("train", RECIPE, "--data", small_text, "--out", tmp_path / "far", *options)
    assert done.returncode == 0, done.stderr
    done = highrank("finetune", tmp_path / "far", "--set", "finetune.lr=1e30")
    refused(done, "no checkpoint yet", "go on with --resume and", "--set finetune.lr=20)")
    done = highrank("finetune", tmp_path / "far", "--resume", "--set", "finetune.lr=20")
    assert done.returncode == 0, done.stderr


def test_a_corpus_that_is_not_here_means_one_line(tmp_path: Path) -> None:
    refused(highrank("train", "penn", cwd=tmp_path), "highrank data get penn", "train.txt", "--data")
    assert not list(tmp_path.iterdir())


def test_results_are_those_of_the_last_model_and_exact(small_text: Path, tmp_path: Path) -> None:
    """A dynamic evaluation of the trained model is not shown as that of the fine-tuned one."""
    run = tmp_path / "run"
    common = ["--data", small_text, "--device", "cpu"]
    assert highrank("train", RECIPE, *common, "--out", run).returncode == 0
    assert highrank("dynamic-eval", run).returncode == 0
    recorded = json.loads((run / "results.json").read_text())
    assert recorded["dynamic"]["stage"] == "train"
    assert highrank("evaluate", run, "--batch", "3").returncode == 0
    assert json.loads((run / "results.json").read_text()) == recorded, "an evaluation that drops text was recorded"

    done = highrank("run", RECIPE, *common, "--out", run, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    dynamic = json.loads((run / "results.json").read_text())["dynamic"]
    assert dynamic["stage"] == "finetune"
    assert {"valid", "test"} <= set(dynamic)
    again = json.loads(highrank("run", RECIPE, *common, "--out", run, "--resume", "--json").stdout)
    assert again == json.loads(done.stdout)


def test_fine_tuning_belongs_to_the_model_it_began_from(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.copy(run / "finetune" / "model.safetensors", run / "train" / "model.safetensors")  # as if trained on
    refused(highrank("finetune", run, "--resume"), "another trained model", "finetune")


def test_settings_that_a_run_may_change_on_the_way(small_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = [RECIPE, "--data", small_text, "--out", run, "--device", "cpu"]
    assert highrank("train", *common).returncode == 0
    done = highrank("train", *common, "--resume", "--set", "finetune.lr=5", "--set", "dynamic.lamb=0.5")
    assert done.returncode == 0, done.stderr
    assert "finetune.lr 10.0 -> 5.0; dynamic.lamb 0.02 -> 0.5" in (run / "log.txt").read_text()
    assert highrank("finetune", run, "--set", "finetune.lr=3").returncode == 0
    assert "lr = 3.0" in (run / "config.toml").read_text()
    refused(highrank("finetune", run, "--resume", "--set", "train.batch=3"), "[finetune] and [dynamic] only")


def test_a_refused_start_leaves_nothing_behind(small_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = [RECIPE, "--data", small_text, "--out", run, "--device", "cpu"]
    for batch in ("5000", "1500"):  # less than a token a column, and 2: nothing to train on
        done = highrank("train", *common, "--set", f"train.batch={batch}", "--set", "train.micro_batch=0")
        refused(done, "train.txt", "too few", batch)
        assert not run.exists()
    for settings, words in {
        ("train.precision=bfloat16", "train.recurrence=triton"): ("train.recurrence: triton cannot run: ",),
        ("train.micro_batch=0", "train.cuda_graphs=true"): ("train.cuda_graphs: needs an NVIDIA GPU, not cpu",),
    }.items():
        refused(highrank("train", *common, *(f"--set={each}" for each in settings)), *words, code=2)
        assert not run.exists()
    assert highrank("train", *common, "--resume", "--set", "train.epochs=1").returncode == 0
    refused(highrank("generate", run, "--temperature", "nan"), "temperature", code=2)
    refused(highrank("dynamic-eval", run, "--lamb", "-1"), "dynamic.lamb", ">= 0", "-1", code=2)
    refused(highrank("dynamic-eval", run, "--epsilon", "inf"), "dynamic.epsilon", "finite", code=2)


def test_a_folder_that_cannot_be_made(small_text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/run"), tmp_path / "file" / "run"):
        done = highrank("train", RECIPE, "--data", small_text, "--out", out)
        refused(done, f"highrank: {out}: cannot be created", f"{out.parent} takes no new folder")
        assert ".new-" not in done.stderr


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


def test_a_device_that_is_not_there(small_text: Path, tmp_path: Path) -> None:
    done = highrank("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--device", "gpu7")
    refused(done, "gpu7", "cannot be used here", code=2)
