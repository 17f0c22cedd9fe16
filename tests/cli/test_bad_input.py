"""What bad input gets: one line, an exit code, and nothing is lost."""

import argparse
import importlib
import json
import math
import os
import resource
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from benchmarks.processes import RECIPE, command, finish, here, one_line
from highrank.runs import RunFolder


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
    done = here("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--set", override)
    one_line(done, *words, codes=(2,))
    assert not (tmp_path / "run").exists()


def test_a_model_larger_than_the_memory(small_text: Path, tmp_path: Path) -> None:
    sizes = ["--set", "model.hidden_features=1000000", "--set", "model.embedding_features=1"]
    # In a process of its own: a memory that does not suffice after all would take the others along.
    done = finish(command("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", *sizes))
    one_line(done, "not enough memory", "--dry-run")


SMALLER = "begin a run with a smaller model or smaller passes (--set train.micro_batch=...; train --dry-run says what "


@pytest.mark.parametrize(
    ("words", "on_gpu", "on_cpu"),
    [
        ("train penn", f"; {SMALLER}", f"; {SMALLER}"),
        ("rank RUN", "; take fewer contexts (--contexts, ", "; take fewer contexts (--contexts, "),
        ("finetune RUN", "; take --device cpu", ""),
    ],
)
def test_out_of_memory_each_command_says_what_it_can_do(
    words: str, on_gpu: str, on_cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]

    def out_of_memory(arguments: argparse.Namespace) -> NoReturn:
        raise errors.pop()

    name, argument = words.split()
    monkeypatch.setattr(importlib.import_module(f"highrank.cli.{name}"), "run", out_of_memory)
    one_line(here(name, argument), f"the GPU is out of memory{on_gpu}", "take --device cpu")
    while errors:
        assert "--device" not in one_line(here(name, argument), f"not enough memory{on_cpu}")


def test_unknown_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(here("train", "pen"), "'pen'", "did you mean 'penn'", codes=(2,))
    one_line(here("train", "none.toml"), "none.toml", "no such file", codes=(2,))
    (tmp_path / "broken.toml").write_text("[data\n")
    one_line(here("train", "broken.toml"), "broken.toml", "not valid TOML")


def test_a_run_folder_that_exists_stays_as_it_is(trained: Path, small_text: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*"))
    one_line(here("train", RECIPE, "--data", small_text, "--out", trained), str(trained), "exists", "--resume")
    one_line(here("finetune", trained), "finetune", "exists", "--resume")
    done = here("train", RECIPE, "--data", small_text, "--out", trained, "--resume", "--set", "train.nonmono=3")
    one_line(done, "other settings", "train.nonmono = 1, now 3")
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*")) == before


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=" ".join)
def test_an_empty_folder_is_no_run(options: list[str], small_text: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    short = ["--set", "train.epochs=1", "--set", "data.train_tokens=1000"]
    done = here("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--device", "cpu", *short, *options)
    assert done.returncode == 0, done.stderr
    assert RunFolder.open(tmp_path / "run").results["train"]["epochs"] == 1


def test_what_a_killed_fine_tuning_was_writing_is_no_fine_tuning(run: Path) -> None:
    shutil.rmtree(run / "finetune")
    (run / "finetune" / ".new-0123").mkdir(parents=True)
    done = here("finetune", run, "--device", "cpu", "--set", "finetune.epochs=1")
    assert done.returncode == 0, done.stderr
    assert not (run / "finetune" / ".new-0123").exists()


def test_a_folder_whose_name_is_not_utf8(small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"run-\xe9")
    one_line(here("train", RECIPE, "--data", small_text, "--out", out), "expected a name in UTF-8", codes=(2,))
    assert not list(tmp_path.iterdir())


def test_not_a_run_folder(tmp_path: Path) -> None:
    one_line(here("evaluate", tmp_path), str(tmp_path), "not a run folder")
    one_line(here("generate", tmp_path / "none"), "not a run folder")


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
    one_line(here("train", RECIPE, "--data", folder, "--out", tmp_path / "run"), *words)


def test_text_that_changed_since(trained: Path, small_text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(small_text, folder)
    verses = (folder / "train.txt").read_text().splitlines(keepends=True)
    (folder / "train.txt").write_text("".join([verses[0], verses[0], *verses[1:]]))  # the same words, the same order
    one_line(here("evaluate", trained, "--data", folder), "train.txt has changed", "sha256")
    with (folder / "train.txt").open("a") as file:
        file.write("neverseenbefore\n")
    one_line(here("evaluate", trained, "--data", folder), "vocabulary 'neverseenbefore' is new;", "--data")
    (folder / "train.txt").write_text("".join([verses[0].replace("beginning", "start"), *verses[1:]]))
    one_line(here("evaluate", trained, "--data", folder), "changed since", "'start' is new; 'beginning' is missing")


def test_a_text_that_is_gone_is_named_by_all_commands(run: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    facts = json.loads((run / "run.json").read_text())
    facts["corpus"]["folder"] = str(gone)
    (run / "run.json").write_text(json.dumps(facts))
    said = f"{gone}: not there any more; give the commands its new place with --data"
    assert said in here("doctor", run).stdout
    for name in ("evaluate", "finetune", "dynamic-eval", "rank", "components"):
        one_line(here(name, run, "--device", "cpu"), said)


def test_a_model_that_does_not_fit_or_is_damaged(run: Path) -> None:
    words = (run / "vocabulary.txt").read_text().splitlines(keepends=True)
    (run / "vocabulary.txt").write_text("".join(words[:-1]))
    one_line(here("generate", run), "model.safetensors", "shape")
    (run / "vocabulary.txt").write_text("".join(words))
    whole = (run / "finetune" / "model.safetensors").read_bytes()
    for length in (0, 7, 200, len(whole) - 1):
        (run / "finetune" / "model.safetensors").write_bytes(whole[:length])
        one_line(here("generate", run), "model.safetensors", "damaged")


def test_a_disk_that_is_full(small_text: Path, tmp_path: Path) -> None:
    """The limit on the size of a file stands for the full disk: writes fail in the middle, in the same way."""
    out = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    begin = command("train", RECIPE, "--data", small_text, "--out", out, "--device", "cpu")
    done = finish(begin, preexec_fn=limit)
    one_line(done, "no space left", str(out))
    assert not list(out.rglob("checkpoint-*"))
    assert not list(out.rglob(".new-*")), "half-written files were left behind"
    done = here(*begin[3:], "--resume")
    assert done.returncode == 0, done.stderr


def test_a_loss_that_is_lost(small_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--set", "train.lr=1e9", "--set", "train.clip=1e9"]
    done = here("train", RECIPE, "--data", small_text, "--out", out, *options)
    one_line(done, "stopped at update", "checkpoint", "lower learning rate")
    done = here("train", RECIPE, "--data", small_text, "--out", tmp_path / "far", "--set", "train.lr=1e30")
    one_line(done, "no checkpoint yet", str(tmp_path / "far"), "--resume", "--set train.lr=20)", "--out")
    options = ["--resume", "--set", "train.lr=20", "--set", "train.epochs=3"]
    done = here("train", RECIPE, "--data", small_text, "--out", tmp_path / "far", *options)
    assert done.returncode == 0, done.stderr
    done = here("finetune", tmp_path / "far", "--set", "finetune.lr=1e30")
    one_line(done, "no checkpoint yet", "go on with --resume and", "--set finetune.lr=20)")
    done = here("finetune", tmp_path / "far", "--resume", "--set", "finetune.lr=20")
    assert done.returncode == 0, done.stderr


def test_weights_that_the_last_update_lost_are_not_saved(small_text: Path, tmp_path: Path) -> None:
    """No loss of training shows it before the epoch ends, whose only update it is."""
    run = tmp_path / "run"
    long = ["--set", "train.bptt=2000", "--set", "train.batch=2", "--set", "train.micro_batch=0"]
    options = ["--data", small_text, "--out", run, "--device", "cpu", *long]
    done = here("train", RECIPE, *options, "--set", "train.lr=1e25")
    good = run / "train" / "checkpoint-00000001"
    one_line(done, "stopped at update 2: the validation loss is not a number", f"the last good checkpoint is {good}")
    assert list(run.rglob("checkpoint-*")) == [good]
    assert [record["step"] for record in RunFolder.open(run).metrics() if record["event"] == "validation"] == [1]
    # Nor within an epoch, though every update is saved.
    options = ["--data", small_text, "--out", tmp_path / "often", "--device", "cpu", "--checkpoint-minutes", "0"]
    done = here("train", RECIPE, *options, "--set", "train.lr=1e25")
    good = tmp_path / "often" / "train" / "checkpoint-00000001"
    one_line(done, "stopped at update 2: a weight is not a number", f"the last good checkpoint is {good}")


def test_a_perplexity_that_no_float_holds(small_text: Path, tmp_path: Path) -> None:
    long = ["--set", "train.bptt=2000", "--set", "train.batch=2", "--set", "train.micro_batch=0"]
    options = ["--data", small_text, "--out", tmp_path / "run", "--device", "cpu", *long, "--set", "train.epochs=1"]
    done = here("train", RECIPE, *options, "--set", "train.lr=1e9", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["valid_loss_nats"] > 710
    assert found["valid_perplexity"] < math.inf


def test_a_corpus_that_is_not_here_means_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(here("train", "penn"), "highrank data get penn", "train.txt", "--data")
    assert not list(tmp_path.iterdir())


def test_fine_tuning_belongs_to_the_model_it_began_from(run: Path) -> None:
    shutil.copy(run / "finetune" / "model.safetensors", run / "train" / "model.safetensors")  # as if trained on
    one_line(here("finetune", run, "--resume"), "another trained model", "finetune")


def test_a_refused_start_leaves_nothing_behind(small_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = [RECIPE, "--data", small_text, "--out", run, "--device", "cpu"]
    for batch in ("5000", "1500"):  # less than a token a column, and 2: nothing to train on
        done = here("train", *common, "--set", f"train.batch={batch}", "--set", "train.micro_batch=0")
        one_line(done, "train.txt", "too few", batch)
        assert not run.exists()
    for settings, words in {
        ("train.precision=bfloat16", "train.recurrence=triton"): ("train.recurrence: triton cannot run: ",),
        ("train.micro_batch=0", "train.cuda_graphs=true"): ("train.cuda_graphs: needs an NVIDIA GPU, not cpu",),
    }.items():
        one_line(here("train", *common, *(f"--set={each}" for each in settings)), *words, codes=(2,))
        assert not run.exists()
    adam = ["--set", "train.optimizer=adamw", "--set"]
    for word, rate, name in (("train", "train.lr=20", "train.lr"), ("run", "train.lr=0.01", "finetune.lr")):
        one_line(here(word, *common, *adam, rate), f"{name}: ", f"--set {name}=0.001", codes=(2,))
        assert not run.exists()
    assert here("train", *common, "--resume", "--set", "train.epochs=1").returncode == 0
    one_line(here("generate", run, "--temperature", "nan"), "temperature", codes=(2,))
    one_line(here("dynamic-eval", run, "--lamb", "-1"), "dynamic.lamb", ">= 0", "-1", codes=(2,))
    one_line(here("dynamic-eval", run, "--epsilon", "inf"), "dynamic.epsilon", "finite", codes=(2,))


def test_a_rate_of_sgd_is_refused_before_another_optimizer_fine_tunes(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("finetune"))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('optimizer = "sgd"', 'optimizer = "rmsprop"'))
    one_line(here("finetune", run), "finetune.lr: ", "--set finetune.lr=0.001", codes=(2,))
    assert not (run / "finetune").exists()


def test_a_folder_that_cannot_be_made(small_text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/run"), tmp_path / "file" / "run"):
        done = here("train", RECIPE, "--data", small_text, "--out", out)
        one_line(done, f"highrank: {out}: cannot be created", f"{out.parent} takes no new folder")
        assert ".new-" not in done.stderr


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "TORCHELASTIC_RESTART_COUNT"])
def test_what_a_launcher_says_wrongly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "two")
    one_line(here("data", "list"), f"{name}='two'", "expected a number")
    monkeypatch.setenv(name, "")
    assert here("data", "list").returncode == 0
    one_line(here("data", "get", "pen"), "highrank: no corpus called 'pen'", codes=(2,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be found")
def test_an_empty_number_of_a_gpu_is_none(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "")
    one_line(here("generate", trained, "--device", "cuda"), "device 'cuda': cannot be used here", codes=(2,))


def test_a_device_that_is_not_there(small_text: Path, tmp_path: Path) -> None:
    done = here("train", RECIPE, "--data", small_text, "--out", tmp_path / "run", "--device", "gpu7")
    one_line(done, "gpu7", "cannot be used here", codes=(2,))
