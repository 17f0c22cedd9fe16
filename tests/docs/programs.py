"""How the tests run the programs that pages name: each command as words, in the current folder."""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from highrank.cli.main import main

__all__ = ["run_command", "run_together"]

TIMEOUT_S = 1200  # of an installation on a busy machine
# What an installed package holds beside its code.
WHOLE = """
import sys
from importlib.resources import files
from highrank.runs import recipe_names
assert recipe_names() == sys.argv[1:], recipe_names()
for name in ("report/page/page.html", "report/page/page.css", "report/page/page.js", "explore/page.css"):
    assert files("highrank").joinpath(name).read_text(encoding="utf-8"), name
"""
STAND_INS = Path(__file__).parent / "slurm"  # sbatch, srun, scontrol


def run_command(words: list[str], folder: Path, place: str) -> str:
    """To its end, which has to be a good one. ``folder`` is the copy of the source. Returns what it printed."""
    line = f"{place}: {shlex.join(words)}"
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    if words[0] == "pip":
        return _installed(words, folder, line)
    if words[:2] == ["highrank", "explore"]:
        return _explored(words, folder, line)
    if words[0] == "highrank":
        return _in_this_process(words, line)
    return _finished([_started(words, folder)], line)


def run_together(commands: list[list[str]], folder: Path, place: str) -> str:
    """Commands of several machines, all of them here and at once."""
    return _finished([_started(words, folder) for words in commands], f"{place}: {commands[0][0]}")


def _started(words: list[str], folder: Path, program: str = "") -> "subprocess.Popen[str]":
    """In an environment as a shell of the reader's has it: the Python that runs the tests, this copy of the source."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    programs = [str(STAND_INS), str(Path(sys.executable).parent), os.environ["PATH"]]
    modules = [str(folder / "src"), str(folder), os.environ.get("PYTHONPATH", "")]
    environment |= {"PATH": os.pathsep.join(programs), "PYTHONPATH": os.pathsep.join(filter(None, modules))}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finished(processes: list["subprocess.Popen[str]"], line: str) -> str:
    try:
        with ThreadPoolExecutor() as pool:  # none has to wait until another one has been listened to
            said = list(pool.map(lambda process: process.communicate(timeout=TIMEOUT_S), processes))
    finally:
        for process in processes:
            process.kill()
    for process, (out, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, f"{line}: exit code {process.returncode}: {out[-4000:]}{errors[-4000:]}"
    return "".join(out for out, _ in said)


def _in_this_process(words: list[str], line: str) -> str:
    """As its tests do: starting Python and PyTorch takes longer than what these commands do."""
    said, noticed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(noticed):
        try:
            code = main(words[1:])
        except SystemExit as end:  # of argparse, after --help
            code = end.code
    assert code == 0, f"{line}: exit code {code}: {noticed.getvalue()[-2000:]}"
    assert "HIGHRANK_LAUNCHED" not in os.environ, f"{line}: errors would not be said any more"
    return said.getvalue()


def _explored(words: list[str], folder: Path, line: str) -> str:
    """Started, its page fetched, stopped by Ctrl-C."""
    process = _started([sys.executable, "-m", *words, "--no-open-browser"], folder)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if address:
            with urllib.request.urlopen(address, timeout=60) as page:
                assert page.status == 200, line
                assert "<html" in page.read().decode(), line
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert address.startswith("http://127.0.0.1:"), f"{line}: no address: {errors[-2000:]}"
    assert process.returncode == 0, f"{line}: exit code {process.returncode}: {errors[-2000:]}"
    return f"{address}\n"


def _installed(words: list[str], folder: Path, line: str) -> str:
    """By the pip of a virtual environment that the page's blocks share; what it put there has to work there."""
    programs = folder.parent / "environment" / "bin"
    if not programs.exists():
        _finished([_started([sys.executable, "-m", "venv", str(programs.parent)], folder)], line)
    # The same versions as in the tests; left alone, pip may choose a build of PyTorch for a GPU, of several gigabytes.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PIP_CONSTRAINT"] = str(folder / "constraints.txt")
    said = ""
    recipes = sorted(path.stem for path in (folder / "recipes").glob("*.toml"))
    whole = [str(programs / "python"), "-c", WHOLE, *recipes]
    for command in ([str(programs / "pip"), *words[1:]], [str(programs / "highrank"), "--version"], whole):
        place = programs if command == whole else None  # out of the source
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said += _finished([process], line)
    return said
