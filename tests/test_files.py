"""Files are whole or as they were; what the disk refuses is one line."""

import errno
import os
from io import RawIOBase
from pathlib import Path

import pytest
from safetensors import SafetensorError

from benchmarks.processes import RECIPE
from highrank import files
from highrank.data import Vocabulary
from highrank.errors import UserError
from highrank.files import append_line, explained
from highrank.runs import RunFolder, read_config


def record(step: int, stage: str = "train", event: str = "interval", epoch: int = 1) -> dict[str, object]:
    return {"stage": stage, "event": event, "epoch": epoch, "step": step}


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for line in ("one", "two", "größer"):
        append_line(path, line, to_disk=True)
    assert path.read_text(encoding="utf-8") == "one\ntwo\ngrößer\n"


def test_a_line_that_was_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntw")
    append_line(path, "three")
    assert path.read_text() == "one\ntw\nthree\n"
    run = RunFolder(tmp_path, read_config(RECIPE), Vocabulary(("<eos>",)), {})
    run.add_metrics(record(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "tra')
    run.add_metrics(record(2))
    assert [found["step"] for found in run.metrics()] == [1, 2]
    run.forget_metrics_after("train", 1, 0)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_append_that_fails_leaves_the_file_as_it_was(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes a part of the line, as disks do, and then no more."""
    path = tmp_path / "lines"
    append_line(path, "one")

    def take_a_part(file: RawIOBase, content: bytes) -> None:
        file.write(content[:2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "write_all", take_a_part)
    with pytest.raises((UserError, OSError)) as refusal:
        append_line(path, "two")
    assert isinstance(refusal.value, UserError) is (number != errno.EIO)
    assert path.read_text() == "one\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left"),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "read-only"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "no permission"),
    ],
)
def test_what_the_disk_refuses_is_one_line(error: Exception, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as refusal, explained(tmp_path / "name"):
        raise error
    assert str(tmp_path / "name") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="I/O"), explained(tmp_path):
        raise OSError(errno.EIO, "I/O error")


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "results.json", "train/model.safetensors"])
def test_a_run_folder_says_what_cannot_be_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path, read_config(RECIPE), Vocabulary(("<eos>",)), {})
    run.begin_stage("train")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", refuse)
    monkeypatch.setattr(files.os, "fsync", refuse)
    writers = {
        "log.txt": lambda: run.log("line"),
        "metrics.jsonl": lambda: run.add_metrics(record(1)),
        "results.json": lambda: run.add_result("train", {"x": 1}),
        "train/model.safetensors": lambda: run.save_best("train", {}),
    }
    with pytest.raises(UserError, match="no space left") as refusal:
        writers[name]()
    assert name in str(refusal.value)


def test_what_a_checkpoint_knows_of_is_kept(tmp_path: Path) -> None:
    """At update 20 the first epoch ends: saved before the validation, validated, killed before it was saved again."""
    run = RunFolder(tmp_path, read_config(RECIPE), Vocabulary(("<eos>",)), {})
    validations = [record(0, "finetune", "validation"), record(20, "finetune", "validation")]
    for each in (record(10), record(20), *validations, record(20, "finetune"), record(30, "finetune")):
        run.add_metrics(each)
    run.forget_metrics_after("finetune", 20, 1)
    assert run.metrics() == [record(10), record(20), *validations, record(20, "finetune")]
    run.forget_metrics_after("finetune", 20, 0)
    assert run.metrics() == [record(10), record(20), validations[0], record(20, "finetune")]
    run.forget_metrics_after("finetune", 0, 0)
    assert run.metrics() == [record(10), record(20)]
