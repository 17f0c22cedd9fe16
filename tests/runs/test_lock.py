"""One stage at work per run folder: a lock that dies with its holder; evaluations beside it wait for a moment."""

import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.processes import RECIPE
from highrank.data import Vocabulary
from highrank.errors import UserError
from highrank.files import new_file
from highrank.runs import RunFolder, at_work, lock, read_config, writing
from highrank.runs.lock import holder, is_held

HOLD = """
import sys, time
from pathlib import Path
from highrank.runs.lock import at_work
with at_work(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(run: Path) -> Iterator["subprocess.Popen[str]"]:
    """That holds the lock until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        assert is_held(tmp_path)
        with pytest.raises(UserError) as refusal, at_work(tmp_path):
            pass
        assert str(tmp_path) in str(refusal.value)
        assert f"process {process.pid} on " in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert refusal.value.exit_code == 1
        assert json.loads((tmp_path / ".lock-holder").read_text())["pid"] == process.pid, (
            "the refused one wrote over it"
        )
    assert holder(tmp_path) is not None, "a kill leaves the note"
    assert not is_held(tmp_path), "and no lock"
    with at_work(tmp_path):
        assert is_held(tmp_path)


def test_within_a_thread_it_is_taken_again(tmp_path: Path) -> None:
    with at_work(tmp_path):
        with at_work(tmp_path):
            pass
        assert is_held(tmp_path)
        assert holder(tmp_path) is not None
        with writing(tmp_path), writing(tmp_path):
            pass
    assert not is_held(tmp_path)
    assert holder(tmp_path) is None


def test_it_is_freed_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), at_work(tmp_path):
        raise RuntimeError
    assert not is_held(tmp_path)


def test_asking_changes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_someone_who_only_asks_does_not_refuse_anybody(tmp_path: Path) -> None:
    asking = FileLock(tmp_path / ".lock", thread_local=False)
    asking.acquire()
    ends = threading.Timer(0.1, asking.release)
    ends.start()
    with at_work(tmp_path):
        pass
    ends.join()


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(UserError, match="no permission"), at_work(tmp_path):
        pass


@pytest.mark.parametrize("hold", [at_work, writing])
def test_a_file_system_without_locks(hold: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(hold)

    def missing(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(UserError, match="no locks"), hold(tmp_path):
        pass


def test_results_of_two_writers_are_both_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, read_config(RECIPE), Vocabulary(("<eos>",)), {})

    def add(name: str) -> None:
        for number in range(25):
            run.add_result(name, {str(number): number})

    writers = [threading.Thread(target=add, args=(name,)) for name in ("train", "dynamic")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {name: len(result) for name, result in run.results.items()} == {"train": 25, "dynamic": 25}


def test_what_an_evaluation_is_writing_is_not_removed(tmp_path: Path) -> None:
    """A stage that starts beside it waits, and then finds only what killed processes left."""
    run = RunFolder(tmp_path, read_config(RECIPE), Vocabulary(("<eos>",)), {})
    run.begin_stage("train")
    left = tmp_path / "train" / ".new-left"
    left.write_text("by a killed process")
    begun, cleaned = threading.Event(), threading.Event()

    def clean() -> None:
        begun.wait()
        run.remove_leftovers("train")
        cleaned.set()

    thread = threading.Thread(target=clean)
    thread.start()
    target = tmp_path / "train" / "gradient-statistics.safetensors"
    with writing(tmp_path), new_file(target) as temporary:
        temporary.write_text("half")
        begun.set()
        time.sleep(0.3)
        assert not cleaned.is_set()
        assert temporary.exists()
    thread.join()
    assert target.exists()
    assert not left.exists()


def test_a_writer_that_never_ends_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WRITTEN_AFTER_S", 0.2)
    other = FileLock(tmp_path / ".writing")
    with other, pytest.raises(UserError, match="another process has been writing"), writing(tmp_path):
        pass
