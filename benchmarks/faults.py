"""Does a run that is killed, stopped, starved of disk, damaged or doubled end with the bits of one that was left alone?

Real training processes, real signals, real mounts. ``python -m benchmarks.faults --kills 50`` writes
results/faults.json; tests/train/test_faults.py calls the same functions, in smaller numbers.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import highrank.cli.environment  # noqa: F401 - as the command line has it
from benchmarks.harness import save
from benchmarks.same_bits import Comparison, checksums, compare, damaged_files
from highrank.cli.main import main as highrank_main
from highrank.files import leftovers
from highrank.runs import RunFolder, latest_checkpoint
from highrank.runs.checkpoint import checkpoint_folders
from highrank.runs.doctor import examine

__all__ = ["RECIPE", "Setting", "Unavailable", "command", "finish", "train_command"]

RECIPE = Path(__file__).parent.parent / "tests" / "train" / "tiny.toml"
VERSES = {"train": 120, "valid": 40, "test": 40}
KILLS_A_RUN = 5
SAVE_S = 0.03  # about as long as a save takes
# Kills are aimed in turn. Without aim most would hit the seconds in which Python and PyTorch are loaded.
AIMS = ("saving", "training", "saving", "any moment")
DISK_BYTES = 8 << 20


class Unavailable(Exception):  # noqa: N818 - not an error: this machine or user cannot cause that fault
    """Why a fault cannot be caused here."""


class Done(NamedTuple):
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "highrank", *map(str, arguments)]


def train_arguments(out: Path, text: Path, *more: str) -> list[str]:
    # Every update is followed by a checkpoint, so that a kill falls into a save as often as not.
    options = ["--data", text, "--out", out, "--checkpoint-minutes", "0", "--device", "cpu"]
    return ["train", *map(str, [RECIPE, *options]), *more]


def train_command(out: Path, text: Path, *more: str) -> list[str]:
    return command(*train_arguments(out, text, *more))


def finish(arguments: list[str]) -> Done:
    """A command in a process of its own, to its end."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def here(*arguments: str | Path) -> Done:
    """A command in this process: it spares the seconds of loading where the process is not what is tested."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = highrank_main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), errors.getvalue())


def one_line(done: Done, *words: str, codes: tuple[int, ...] = (1,)) -> str:
    """The clear line with which a command gave up."""
    assert done.returncode in codes, f"exit code {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("highrank: "), done.stderr
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"
    return last


def newest_checkpoint(run: Path) -> str:
    return max((path.name for path in (run / "train").glob("checkpoint-*")), default="")


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool], *, every_s: float = 0.005) -> bool:
    """False if the process came to its end before."""
    while not reached():
        if process.poll() is not None:
            return False
        time.sleep(every_s)
    return True


def expect(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """As ``wait_until``, where the process must not come to its end before."""
    if not wait_until(process, reached):
        raise AssertionError(f"the process has ended ({process.returncode}): {process.communicate()[1]}")


def kill(process: subprocess.Popen[str]) -> bool:
    """Was it the kill that ended it?"""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


@dataclass
class Setting:
    """A text, a run on it that was left alone, how long that took, and a folder to work in."""

    text: Path
    reference: Path
    whole_s: float
    folder: Path

    @classmethod
    def make(cls, text: Path, folder: Path) -> "Setting":
        began = time.monotonic()
        done = finish(train_command(folder / "uninterrupted", text))
        assert done.returncode == 0, done.stderr
        assert any(record.get("averaging") for record in RunFolder.open(folder / "uninterrupted").metrics())
        return cls(text, folder / "uninterrupted", time.monotonic() - began, folder)

    def resumed(self, run: Path) -> Comparison:
        """Resume ``run`` to its end, look at every file, compare."""
        done = here(*train_arguments(run, self.text, "--resume"))
        assert done.returncode == 0, done.stderr
        wrong = damaged_files(run)
        assert not wrong, wrong
        return compare(run, self.reference)

    def copy(self, name: str, *, finished: bool) -> Path:
        """The uninterrupted run once more; or as it was when its last checkpoint was not yet there."""
        run = self.folder / name
        shutil.copytree(self.reference, run)
        if not finished:
            shutil.rmtree(checkpoint_folders(run / "train")[0])
            (run / "results.json").unlink()
        return run


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
        _fill(filler)
        lines.append(one_line(here(*train_arguments(run, setting.text)), "no space left", str(run)))
        assert list(disk.iterdir()) == [filler], "a run that could not begin left something behind"
        filler.unlink()

        process = start(train_command(run, setting.text))
        expect(process, lambda: bool(newest_checkpoint(run)))
        _fill(filler)
        _, errors = process.communicate(timeout=60)
        lines.append(one_line(Done(process.returncode, "", errors), "no space left"))
        assert not damaged_files(run)
        stood = newest_checkpoint(run)

        for free_bytes in (0, 60_000):
            _fill(filler, leave=free_bytes)
            lines.append(one_line(here(*train_arguments(run, setting.text, "--resume")), "no space left"))
            assert latest_checkpoint(run / "train", notice=_never) is not None
            assert newest_checkpoint(run) >= stood
            assert not damaged_files(run)
        filler.unlink()
        comparison = setting.resumed(run)
        _fill(filler)
        results = (run / "results.json").read_bytes()
        lines.append(one_line(here("evaluate", run, "--data", setting.text), "results.json", "no space left"))
        assert (run / "results.json").read_bytes() == results
        assert not damaged_files(run)
    return {"refusals": len(lines)} | comparison.as_result()


def read_only_folder(setting: Setting) -> dict[str, Any]:
    """Every command that writes says so in one line and changes nothing; those that only read work."""
    run = setting.copy("read-only", finished=False)
    before = checksums(run)
    with read_only(run) as words:
        one_line(here(*train_arguments(run, setting.text, "--resume")), str(run), words)
        one_line(here("finetune", run, "--data", setting.text, "--device", "cpu"), str(run), words)
        one_line(here("evaluate", run, "--data", setting.text, "--device", "cpu"), str(run), words)
        assert here("generate", run, "--words", "5", "--device", "cpu").returncode == 0
        assert here("doctor", run).returncode == 0
    assert checksums(run) == before
    return {"refusals": 3} | setting.resumed(run).as_result()


def second_process(setting: Setting) -> dict[str, Any]:
    """A second one is refused as long as the first lives, an evaluation is not; after a kill the next one begins."""
    run = setting.folder / "doubled"
    first = start(train_command(run, setting.text))
    expect(first, (run / "train" / "model.safetensors").exists)
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


def cut_short(setting: Setting, *, every: int = 1) -> dict[str, Any]:
    """Each file of a run ends at each place that matters (or at each ``every``-th of them, the ends always).

    A resume passes over what is damaged or makes it again, to the same bits; or it says in one line what is wrong,
    changes nothing, and ends with the same bits once the file is back.
    """
    comparison = Comparison()
    result = {"cuts": 0, "passed_over_or_made_again": 0, "refused": 0}
    resume = lambda run: here(*train_arguments(run, setting.text, "--resume"))  # noqa: E731
    base = {finished: setting.copy(f"whole-{finished}", finished=finished) for finished in (True, False)}
    newest = checkpoint_folders(base[True] / "train")[0].name
    cases = [(True, f"train/{newest}/{name}") for name in ("model.safetensors", "state.safetensors", "state.json")]
    cases += [(True, name) for name in ("train/model.safetensors", "results.json")]
    cases += [(False, name) for name in ("metrics.jsonl", "log.txt", "config.toml", "run.json", "vocabulary.txt")]
    for finished, name in cases:
        lengths = boundaries(base[finished] / name)
        for length in sorted({*lengths[::every], lengths[-1]}):
            run = setting.folder / "cut"
            shutil.copytree(base[finished], run)
            whole = (run / name).read_bytes()
            (run / name).write_bytes(whole[:length])
            before = checksums(run)
            done = resume(run)
            result["cuts"] += 1
            if done.returncode == 0:
                result["passed_over_or_made_again"] += 1
            else:
                result["refused"] += 1
                line = one_line(done, codes=(1, 2))
                # A configuration that was cut at the end of a line is one with other settings.
                assert name in line or Path(name).stem in line or "other settings" in line, line
                # The end of a stage is what it is; only its results could not be added to a file that is damaged.
                assert checksums(run) == before or name == "results.json", f"{name}[:{length}]: something was changed"
                (run / name).write_bytes(whole)
                done = resume(run)
                assert done.returncode == 0, done.stderr
            wrong = damaged_files(run)
            assert not wrong, f"{name}[:{length}]: {wrong}"
            found = compare(run, setting.reference)
            found.different = [f"{name}[:{length}]: {different}" for different in found.different]
            comparison.add(found)
            shutil.rmtree(run)
    return result | comparison.as_result()


def boundaries(path: Path) -> list[int]:
    """Where a write that is cut short leaves something that a careless reader may take for whole."""
    content = path.read_bytes()
    size = len(content)
    lengths = {0, 1, size // 2, size - 1}
    if path.suffix == ".safetensors":
        header = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + header])
        ends = [tensor["data_offsets"][1] for name, tensor in described.items() if name != "__metadata__"]
        lengths |= {7, 8, 8 + header - 1, 8 + header, *(8 + header + end for end in ends)}
    elif path.suffix == ".jsonl":
        # Only the last record: what lies before it is on the disk before a checkpoint is.
        last = content[:-1].rfind(b"\n") + 1
        lengths = {last, last + 1, (last + size) // 2, size - 2, size - 1}
    elif path.suffix == ".toml":
        lengths |= {place + 1 for place, byte in enumerate(content) if byte == ord("\n")}
    elif path.suffix == ".txt":
        lengths |= {content.find(b"\n", size // 2) + 1}
    return sorted(length for length in lengths if length < size)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A small disk of its own. Raises Unavailable where none can be mounted."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[str]:
    """Nobody can write into ``folder``; gives the words for that. Permissions do not bind root: for it, a mount."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        _mount("--bind", str(folder), str(folder))
        try:
            _mount("-o", "remount,bind,ro", str(folder))
            yield "read-only"
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        yield "no permission"
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def _mount(*arguments: str) -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("mounting a file system needs Linux and root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"a file system cannot be mounted here: {done.stderr.strip()}")


def _fill(filler: Path, *, leave: int = 0) -> None:
    """Take all space of the disk but ``leave`` bytes."""
    filler.unlink(missing_ok=True)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(filler, max(0, filler.stat().st_size - leave))


def _never(text: str) -> None:
    raise AssertionError(f"no checkpoint should have to be passed over: {text}")


def make_text(folder: Path) -> Path:
    """Some verses of the embedded corpus: real text of a size that trains in seconds."""
    from highrank.data.kjv import build_kjv

    whole, part = build_kjv(folder / "kjv"), folder / "text"
    part.mkdir()
    for split, verses in VERSES.items():
        lines = (whole / f"{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:verses]
        (part / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return part


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
        setting = Setting.make(make_text(Path(folder)), Path(folder))
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
