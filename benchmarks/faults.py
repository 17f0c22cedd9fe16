"""Does a run that is killed, stopped, starved of disk, damaged or doubled end with the bits of one that was left alone?

Real training processes, real signals, real mounts. ``python -m benchmarks.faults --kills 50`` writes
results/faults.json; tests/train/test_faults.py calls the same functions, in smaller numbers.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highrank.cli.environment  # noqa: F401 - as the command line has it
from benchmarks.cuts import cut_short
from benchmarks.disks import Unavailable, fill, mounted, read_only
from benchmarks.harness import save
from benchmarks.processes import (
    Done,
    Setting,
    expect,
    here,
    kill,
    newest_checkpoint,
    one_line,
    start,
    train_arguments,
    train_command,
    wait_until,
)
from benchmarks.same_bits import Comparison, checksums, damaged_files
from benchmarks.small_text import write_small_text
from highrank.data.kjv import build_kjv
from highrank.files import leftovers
from highrank.runs import latest_checkpoint
from highrank.runs.checkpoint import checkpoint_folders
from highrank.runs.doctor import examine

__all__ = [
    "cut_short",
    "full_disk",
    "killed",
    "read_only_folder",
    "second_process",
    "stopped",
]

KILLS_A_RUN = 5
SAVE_S = 0.03  # about as long as a save takes
# Kills are aimed in turn. Without aim most would hit the seconds in which Python and PyTorch are loaded.
AIMS = ("saving", "training", "saving", "any moment")


def killed(setting: Setting, kills: int, *, seed: int) -> dict[str, Any]:
    """SIGKILL, ``kills`` times: at any moment, within an epoch, while something is being written."""
    draws = random.Random(seed)
    result = {"kills": 0, "kills_during_a_save": 0, "resumes": 0, "too_late": 0}
    comparison = Comparison()
    while result["kills"] < kills:
        run = setting.folder / f"killed-{comparison.runs}"
        for _ in range(min(KILLS_A_RUN, kills - result["kills"])):
            resume = ["--resume"] if run.exists() else []
            process = start(train_command(run, setting.text, *resume))
            _wait_for_the_moment(process, run, AIMS[result["kills"] % len(AIMS)], setting.whole_s, draws)
            if not kill(process):
                result["too_late"] += 1
                break
            result["kills"] += 1
            result["resumes"] += len(resume)
            if run.exists():
                result["kills_during_a_save"] += any(leftovers(run, run / "train"))
                wrong = examine(run).wrong
                assert not wrong, wrong
        result["resumes"] += run.exists()
        comparison.add(setting.resumed(run))
        shutil.rmtree(run)
    return result | comparison.as_result()


def _wait_for_the_moment(
    process: subprocess.Popen[str], run: Path, aim: str, whole_s: float, draws: random.Random
) -> None:
    if aim == "any moment":
        ends = time.monotonic() + draws.uniform(0, 0.6 * whole_s)  # later ones would often be too late
        wait_until(process, lambda: time.monotonic() > ends)
        return
    before = newest_checkpoint(run)
    if not wait_until(process, lambda: newest_checkpoint(run) != before):  # a kill should take something away
        return
    if aim == "training":
        time.sleep(draws.uniform(0, 0.3))
        return
    for _ in range(draws.randrange(3)):  # not always the first save after a start
        wait_until(process, lambda: not any(leftovers(run / "train")), every_s=0.0005)
        wait_until(process, lambda: any(leftovers(run / "train")), every_s=0.0005)
    while process.poll() is None:
        wait_until(process, lambda: any(leftovers(run / "train")), every_s=0.0005)
        time.sleep(draws.uniform(0, SAVE_S))
        # Held still and looked at, so that the kill falls into a save however slow the machine is.
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if any(leftovers(run / "train")):
            return
        process.send_signal(signal.SIGCONT)


def stopped(setting: Setting, number: signal.Signals) -> dict[str, Any]:
    """SIGTERM or SIGINT: saves, says so by its exit code, goes on with --resume."""
    run = setting.folder / f"stopped-{number.name}"
    # No checkpoint on the way: what is resumed is what the signal saved.
    process = start([*train_command(run, setting.text), "--checkpoint-minutes", "1000"])
    expect(process, (run / "metrics.jsonl").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "go on with --resume" in errors, errors
    assert "Traceback" not in errors, errors
    assert not damaged_files(run)
    assert checkpoint_folders(run / "train")
    return {"signals": 1, "exit_code": process.returncode} | setting.resumed(run).as_result()


def full_disk(setting: Setting) -> dict[str, Any]:
    """No space: from the start, in the middle, while still full, and enough for a record but not for a checkpoint."""
    lines = []
    with mounted(setting.folder / "disk") as disk:
        run, filler = disk / "run", disk / "filler"
        fill(filler)
        lines.append(one_line(here(*train_arguments(run, setting.text)), "no space left", str(run)))
        assert list(disk.iterdir()) == [filler], "a run that could not begin left something behind"
        filler.unlink()

        process = start(train_command(run, setting.text))
        expect(process, lambda: bool(newest_checkpoint(run)))
        fill(filler)
        _, errors = process.communicate(timeout=60)
        lines.append(one_line(Done(process.returncode, "", errors), "no space left"))
        assert not damaged_files(run)
        stood = newest_checkpoint(run)

        for free_bytes in (0, 60_000):
            fill(filler, leave=free_bytes)
            lines.append(one_line(here(*train_arguments(run, setting.text, "--resume")), "no space left"))
            assert latest_checkpoint(run / "train", notice=_never) is not None
            assert newest_checkpoint(run) >= stood
            assert not damaged_files(run)
        filler.unlink()
        comparison = setting.resumed(run)
        fill(filler)
        results = (run / "results.json").read_bytes()
        lines.append(_not_recorded(here("evaluate", run, "--data", setting.text), "results.json", "no space left"))
        assert (run / "results.json").read_bytes() == results
        assert not damaged_files(run)
    return {"refusals": len(lines)} | comparison.as_result()


def _not_recorded(done: Done, *words: str) -> str:
    """The line of an evaluation that was made, and told, but could not be recorded."""
    assert "perplexity" in done.stdout
    return one_line(done._replace(stdout=""), "not recorded", *words)


def read_only_folder(setting: Setting) -> dict[str, Any]:
    """Every command that writes says so in one line and changes nothing; those that only read work."""
    run = setting.copy("read-only", finished=False)
    before = checksums(run)
    with read_only(run) as words:
        one_line(here(*train_arguments(run, setting.text, "--resume")), str(run), words)
        one_line(here("finetune", run, "--data", setting.text, "--device", "cpu"), str(run), words)
        _not_recorded(here("evaluate", run, "--data", setting.text, "--device", "cpu"), str(run), words)
        assert here("generate", run, "--words", "5", "--device", "cpu").returncode == 0
        assert here("doctor", run).returncode == 0
    assert checksums(run) == before
    return {"refusals": 3} | setting.resumed(run).as_result()


def second_process(setting: Setting) -> dict[str, Any]:
    """A second one is refused as long as the first lives, an evaluation is not; after a kill the next one begins."""
    run = setting.folder / "doubled"
    first = start(train_command(run, setting.text))
    expect(first, (run / "train" / "model.safetensors").exists)
    seen = newest_checkpoint(run)
    expect(first, lambda: newest_checkpoint(run) > seen)  # so that it is not stopped while it writes that model
    first.send_signal(signal.SIGSTOP)  # holds its lock, and comes to no end while we look
    try:
        who = f"process {first.pid} on "
        more = [*train_arguments(run, setting.text, "--resume"), "--set", "train.lr=1"]
        before = checksums(run)
        one_line(here(*more), str(run), who)
        one_line(here("finetune", run, "--data", setting.text, "--device", "cpu"), str(run), who)
        assert checksums(run) == before, "one that was refused changed something"
        assert any(who in finding.text for finding in examine(run).findings)
        evaluated = here("evaluate", run, "--data", setting.text, "--device", "cpu")
        assert evaluated.returncode == 0, evaluated.stderr
    finally:
        ended = kill(first)
    assert ended
    return {"refusals": 2, "evaluations_beside": 1, "kills": 1} | setting.resumed(run).as_result()


def _never(text: str) -> None:
    raise AssertionError(f"no checkpoint should have to be passed over: {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    faults: dict[str, Callable[[Setting], dict[str, Any]]] = {
        "killed": lambda setting: killed(setting, arguments.kills, seed=arguments.seed),
        "SIGTERM": lambda setting: stopped(setting, signal.SIGTERM),
        "SIGINT": lambda setting: stopped(setting, signal.SIGINT),
        "full disk": full_disk,
        "read-only folder": read_only_folder,
        "second process": second_process,
        "cut short": cut_short,
    }
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="highrank-faults-") as folder:
        text = write_small_text(build_kjv(Path(folder) / "kjv"), Path(folder) / "text")
        setting = Setting.make(text, Path(folder))
        for name, cause in faults.items():
            began = time.monotonic()
            try:
                results[name] = cause(setting)
            except Unavailable as reason:
                results[name] = {"skipped": str(reason)}
            except AssertionError as error:  # the others are worth knowing all the same
                results[name] = {"failed": str(error)}
            print(f"{name}: {results[name]}, {time.monotonic() - began:.0f} s", flush=True)
    totals = {
        key: sum(result.get(key, 0) for result in results.values())
        for key in ("kills", "kills_during_a_save", "runs_compared", "tensors_compared", "bits_compared")
    }
    lost = sum(result.get("bits_different", 0) for result in results.values())
    print(save("faults", {"seed": arguments.seed, "totals": totals | {"bits_different": lost}, "faults": results}))
    return 1 if lost or any("failed" in result for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
