"""Several workers end as one does, whatever happens to them: real processes over a real process group."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig

from benchmarks.processes import (
    RECIPE,
    Done,
    Setting,
    command,
    expect,
    finish,
    here,
    newest_checkpoint,
    one_line,
    train_command,
)
from benchmarks.same_bits import checksums, compare
from benchmarks.workers_agree import agreement, train_with
from highrank.cli.launch import launch
from highrank.data import load_corpus
from highrank.errors import UserError
from highrank.runs import RunFolder, read_config
from highrank.train import train_stage
from highrank.workers import Workers

TIMEOUT_S = 5
AGENT_WAITS_S = 30  # so long PyTorch's agent waits for a worker that it has asked to stop
# Of the recipe of WikiText-2 all but its sizes: updates of three micro-batches.
NARROW = (
    "model.num_components=3",
    "model.embedding_features=24",
    "model.hidden_features=40",
    "model.last_hidden_features=32",
    "train.epochs=8",
    "train.average_from=5",
)
THREE = ("--set", "train.micro_batch=2")  # of the six columns of tiny.toml
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here and in processes: the number of threads decides how a product is cut, and with that its last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A run with three micro-batches an update, by one worker."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:  # before the fixture above, which comes anew for every test
        patch.setenv("OMP_NUM_THREADS", "1")
        done = finish(train_command(folder / "run", small_text, *THREE))
    assert done.returncode == 0, done.stderr
    return Setting(small_text, folder / "run", 0.0, folder)


def begin(run: Path, setting: Setting, workers: int, *more: str) -> subprocess.Popen[str]:
    options = [*THREE, "--workers", str(workers), "--worker-timeout", str(TIMEOUT_S), *more]
    return subprocess.Popen(
        train_command(run, setting.text, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def workers_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Process numbers, worker 0 first: they are started in order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return sorted(map(int, children))


def after_some_updates(process: subprocess.Popen[str], run: Path) -> None:
    before = newest_checkpoint(run)
    expect(process, lambda: newest_checkpoint(run) > before)


def ended(process: subprocess.Popen[str], within_s: float) -> Done:
    began = time.monotonic()
    out, errors = process.communicate(timeout=120)
    assert time.monotonic() - began < within_s
    return Done(process.returncode, out, errors)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 0.0)])
def test_one_two_and_three_workers_end_alike(small_text: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    settings = [word for setting in NARROW for word in ("--set", setting)]
    arguments = ["wikitext-2", "--data", str(small_text), "--device", "cpu", *settings]
    for workers in (1, 2, 3):
        train_with(workers, tmp_path / str(workers), arguments, dtype=dtype)
    for workers in (2, 3):
        found = agreement(tmp_path / "1", tmp_path / str(workers))
        assert found["updates"] >= 30
        assert found["averaging"]
        assert found["tensors"] > 30
        assert found["largest_relative_difference"] <= tolerance
        assert found["largest_difference_of_validation_nats"] <= 1e-5


def test_a_run_goes_on_with_any_number_of_workers_after_any_loss(alone: Setting, tmp_path: Path) -> None:
    run = tmp_path / "run"

    process = begin(run, alone, 1)
    after_some_updates(process, run)
    process.kill()
    process.communicate()

    # One of three dies.
    process = begin(run, alone, 3, "--resume")
    after_some_updates(process, run)
    os.kill(workers_of(process)[2], signal.SIGKILL)
    line = one_line(ended(process, 30), "worker 2 died", "SIGKILL", "go on with --resume")
    assert "the last checkpoint stands" in line

    # One of two answers no more, but lives.
    process = begin(run, alone, 2, "--resume")
    after_some_updates(process, run)
    silent = workers_of(process)[1]
    os.kill(silent, signal.SIGSTOP)
    one_line(ended(process, TIMEOUT_S + AGENT_WAITS_S + 40), "worker 1", f"process {silent}", "stopped answering")
    assert not Path(f"/proc/{silent}").exists(), "the silent worker was left behind"

    # All are asked to stop.
    process = begin(run, alone, 3, "--resume")
    after_some_updates(process, run)
    process.send_signal(signal.SIGTERM)
    done = ended(process, 30)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("go on with --resume") == 1
    assert "Traceback" not in done.stderr

    # One of them is asked to stop: then all do.
    process = begin(run, alone, 2, "--resume")
    after_some_updates(process, run)
    os.kill(workers_of(process)[1], signal.SIGTERM)
    done = ended(process, 30)
    assert done.returncode == 128 + signal.SIGTERM
    assert "saved train at update" in done.stderr

    done = finish(train_command(run, alone.text, *THREE, "--resume"))
    assert done.returncode == 0, done.stderr
    same_bits(run, alone.reference)


def test_ctrl_c_while_the_workers_load_is_one_line(alone: Setting, tmp_path: Path) -> None:
    process = begin(tmp_path / "run", alone, 2)
    expect(process, lambda: [loads_pytorch(worker) for worker in workers_of(process)] == [True, True])
    for each in (process.pid, *workers_of(process)):  # as a terminal tells all of them
        os.kill(each, signal.SIGINT)
    assert ended(process, 30) == (130, "", "highrank: stopped\n")


def loads_pytorch(process: int) -> bool:
    try:
        begun = b"\0RANK=" in Path(f"/proc/{process}/environ").read_bytes()  # until then it is the launcher's copy
        return begun and "libtorch" in Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):  # something that the launcher asked, and that has ended
        return False


@pytest.mark.slow
def test_a_signal_waits_for_an_update_that_takes_longer_than_the_agent_would(alone: Setting, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = begin(run, alone, 2, "--worker-timeout", "120")
    after_some_updates(process, run)
    slow = workers_of(process)[1]
    os.kill(slow, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(AGENT_WAITS_S + 5)
    os.kill(slow, signal.SIGCONT)
    done = ended(process, 30)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("go on with --resume") == 1


def test_the_agent_is_told_to_wait_a_day_unless_its_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    waits: list[float] = []

    def started(config: LaunchConfig, entrypoint: str) -> Callable[..., None]:
        if not hasattr(config, "shutdown_timeout"):
            pytest.skip("PyTorch 2.11 cannot be told")
        waits.append(config.shutdown_timeout)
        return lambda *words: None

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", started)
    launch(["-m", "highrank"], 2)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "7")
    launch(["-m", "highrank"], 2)
    assert waits == [86400, 7]


def same_bits(run: Path, reference: Path) -> None:
    found = compare(run, reference)
    assert found.tensors > 50
    assert found.different == []


def test_workers_started_by_nohup_outlive_their_terminal(alone: Setting, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which processes inherit
    try:
        process = begin(run, alone, 2)
    finally:
        signal.signal(signal.SIGHUP, before)
    after_some_updates(process, run)
    for each in (process.pid, *workers_of(process)):
        os.kill(each, signal.SIGHUP)
    done = ended(process, 60)
    assert done.returncode == 0, done.stderr


def test_torchrun_starts_the_workers_again_after_a_loss(alone: Setting, tmp_path: Path) -> None:
    run = tmp_path / "run"
    inside = train_command(run, alone.text, *THREE, "--worker-timeout", str(TIMEOUT_S))[1:]
    process = subprocess.Popen(
        [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", *inside],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    after_some_updates(process, run)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    done = ended(process, 120)
    assert done.returncode == 0, done.stderr
    assert "highrank: worker 1 (process " in done.stderr
    assert "resuming train at epoch" in done.stderr
    same_bits(run, alone.reference)


def test_every_other_stage_with_two_workers(alone: Setting, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    results = []
    for run, workers in zip(runs, (1, 2), strict=True):
        shutil.copytree(alone.reference, run)
        tempered = ["evaluate", "--temperature", "tune"]
        for name, *options in (["finetune"], ["evaluate", "--split", "valid"], tempered, ["dynamic-eval"]):
            arguments = [name, str(run), "--device", "cpu", *options]
            done = here(*arguments) if workers == 1 else finish(command(*arguments, "--workers", str(workers)))
            assert done.returncode == 0, done.stderr
        results.append(json.loads((run / "results.json").read_text()))
    one, two = results
    assert one["finetune"]["valid_loss_nats"] == two["finetune"]["valid_loss_nats"]
    assert one["finetune"]["valid"]["loss_nats"] == two["finetune"]["valid"]["loss_nats"]
    first, second = (each["finetune"]["tempered"] for each in results)
    assert (first["search"], first["temperature"]) == (second["search"], second["temperature"])
    assert first["test"]["loss_nats"] == second["test"]["loss_nats"]
    # The gradient statistics are sums over segments in float32, in another order.
    assert one["dynamic"]["test"]["loss_nats"] == pytest.approx(two["dynamic"]["test"]["loss_nats"], abs=1e-5)


def test_where_there_is_nothing_to_resume_a_loss_does_not_say_so(alone: Setting) -> None:
    arguments = ["evaluate", alone.reference, "--workers", "2", "--worker-timeout", str(TIMEOUT_S)]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    expect(process, lambda: len(workers_of(process)) == 2)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    line = one_line(ended(process, 30), "worker 1 died", "SIGKILL", "; start it again")
    assert "--resume" not in line


def test_an_error_is_one_line_whoever_meets_it(alone: Setting, tmp_path: Path) -> None:
    exists = finish([*train_command(alone.reference, alone.text, *THREE), "--workers", "2"])
    one_line(exists, "exists already")
    assert exists.stderr.count("\n") == 1
    many = finish([*train_command(tmp_path / "run", alone.text), "--workers", "3"])
    one_line(many, "3 workers, but an update has 2 micro-batches", codes=(2,))
    assert many.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_events_that_cannot_be_written_are_one_line_of_several_workers(alone: Setting) -> None:
    run = alone.copy("without-events", finished=False)
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").symlink_to("/sys")  # which takes no new folder, whoever asks
    done = finish([*train_command(run, alone.text, *THREE, "--resume"), "--workers", "2"])
    line = one_line(done, str(run / "tensorboard"))
    assert "died" not in line


@pytest.mark.parametrize("name", ["rank", "components", "report"])
def test_a_command_that_shares_no_work_refuses_several_workers(name: str, alone: Setting, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone.reference, run)
    before = checksums(run)
    inside = command(name, run, "--device", "cpu", "--json")[1:]
    done = finish([*TORCHRUN, "--standalone", "--nproc-per-node", "2", *inside])
    assert done.returncode != 0
    assert done.stdout == ""
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("highrank: ")]
    assert said.startswith("highrank: 2 workers were started, and this command shares no work")
    assert checksums(run) == before


def test_a_worker_with_another_text_is_refused(small_text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_text, other)
    with (other / "valid.txt").open("a") as file:
        file.write("and god said\n")
    config, first, second = read_config(RECIPE), load_corpus(small_text), load_corpus(other)
    run = RunFolder.create(tmp_path / "run", config, first.vocabulary, first)
    with pytest.raises(UserError, match=r"valid\.txt has changed since the run"):
        train_stage(run, "train", second)


def test_a_resumed_run_tells_its_text_to_machines_that_do_not_have_its_folder(alone: Setting, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    runs = [alone.copy("resumed", finished=False), tmp_path / "elsewhere"]
    processes = [
        subprocess.Popen(
            command("train", RECIPE, *THREE, "--out", run, "--device", "cpu", "--resume"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(number)},
        )
        for number, run in enumerate(runs)
    ]
    ends = [ended(process, 120) for process in processes]
    assert [end.returncode for end in ends] == [0, 0], ends
    same_bits(runs[0], alone.reference)


@pytest.fixture
def two_hosts() -> Iterator[Callable[[str], None]]:
    """Two network namespaces, joined by a virtual cable. Yields what switches the cable ("up" or "down")."""

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"network namespaces cannot be made here: ip {' '.join(words)}: {done.stderr.strip()}")

    if shutil.which("ip") is None:
        pytest.skip("network namespaces cannot be made here: there is no ip command")
    names = [f"highrank{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield lambda state: ip("-n", names[0], "link", "set", "cable", state)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def host(number: int, run: Path, setting: Setting, timeout_s: int) -> subprocess.Popen[str]:
    where = [f"--node-rank={number}", "--master-addr=10.77.0.1", "--master-port=29577", "--max-restarts=9"]
    inside = train_command(run, setting.text, *THREE, "--worker-timeout", str(timeout_s))[1:]
    return subprocess.Popen(
        ["ip", "netns", "exec", f"highrank{os.getpid()}{'ab'[number]}", *TORCHRUN, "--nnodes=2", *where, *inside],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "cable"},
    )


@pytest.mark.parametrize(
    ("timeout_s", "cut_s"),
    [
        pytest.param(60, 4, id="shorter than the timeout"),
        pytest.param(TIMEOUT_S, 3 * TIMEOUT_S, id="longer than the timeout", marks=pytest.mark.slow),
    ],
)
def test_two_machines_whose_link_is_cut(
    alone: Setting, tmp_path: Path, two_hosts: Callable[[str], None], timeout_s: int, cut_s: float
) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    processes = [host(number, run, alone, timeout_s) for number, run in enumerate(runs)]
    try:
        after_some_updates(processes[0], runs[0])
        two_hosts("down")
        time.sleep(cut_s)
        standing = newest_checkpoint(runs[0])
        time.sleep(0.5)
        assert newest_checkpoint(runs[0]) == standing, "training went on without the link"
        two_hosts("up")
        ends = [ended(process, 300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [end.returncode for end in ends] == [0, 0], ends
    restarted = "resuming train" in ends[0].stderr
    assert restarted == (cut_s > timeout_s)
    assert not runs[1].exists(), "the second machine has written a run folder"
    same_bits(runs[0], alone.reference)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (True, r"all of them are alive \(CUDA error: device-side assert triggered\); start it"),
        (False, r"1 \(process 7\) has died .* \(worker 0 met: CUDA error: device-side assert triggered\); start it"),
    ],
)
def test_the_error_that_a_worker_met_is_in_the_line(answers: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    store.set("place/1", "process 7")
    if answers:
        store.set("answers/1", "1")
    workers = Workers(0, 2, store, after_loss="start it again")

    def failing(*arguments: object, **options: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")

    monkeypatch.setattr(dist, "all_reduce", failing)
    with pytest.raises(UserError, match=said):
        workers.largest(1)


def test_one_gpu_for_several_workers_is_refused(alone: Setting, tmp_path: Path) -> None:
    options = ["--workers", "2", "--device", "cuda:0"]
    refused = finish(train_command(tmp_path / "run", alone.text, *THREE, *options))
    one_line(refused, "'cuda:0': one GPU for 2 workers; --device cuda", codes=(2,))
    assert refused.stderr.count("\n") == 1
