"""Readers of a run folder: checkpoints, the trained model, records, cached statistics."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fuzzing.damage import Damage
from benchmarks.fuzzing.target import Damaged, Target, Told, content_of_corpus, digest
from highrank.evaluate import of_run
from highrank.report import summary_lines
from highrank.report.history import history_of
from highrank.runs import (
    Config,
    RunFolder,
    build_model,
    latest_checkpoint,
    load,
    load_checkpoint,
    save_checkpoint,
)
from highrank.runs.doctor import examine
from highrank.runs.records import read_standing
from highrank.runs.tensors import model_tensors
from highrank.train import corpus_of
from highrank.train.state import StageState

__all__ = ["SIZES", "checkpoints", "gradient_statistics", "records", "trained_model"]

SIZES = {"embedding_features": 4, "hidden_features": 6, "last_hidden_features": 5, "num_layers": 2, "num_components": 3}


def checkpoints(work: Path, config: Config, vocab_size: int) -> Iterator[Target]:
    folder = work / "checkpoints"
    folder.mkdir()

    def stage_state() -> StageState:
        state = StageState(build_model(config, vocab_size), config)
        state.start_averaging()
        return state

    state = stage_state()
    contents = []
    for step in (7, 8):
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state.step(1.0)
        state.position.step = step
        state.position.history.append(5.0 / step)
        path = state.save(folder)
        contents.append(_checkpoint_content(load_checkpoint(path)))
    files = tuple(
        Damaged(f"{path.name}/{name}", kind, guarded=True)
        for name, kind in (
            ("state.json", "json"),
            ("model.safetensors", "safetensors"),
            ("state.safetensors", "safetensors"),
        )
    )
    yield Target(
        "checkpoint",
        folder,
        files,
        lambda copy, notice: _checkpoint_content(load_checkpoint(copy / path.name)),
        extra=tuple((files[0], damage) for damage in _other_names()),
    )

    def newest(copy: Path, notice: Callable[[str], None]) -> str:
        read_standing(copy.parent, copy.name)  # for a listing: nothing, where it can read nothing
        checkpoint = latest_checkpoint(copy, notice=notice)
        assert checkpoint is not None, "checkpoints are there, and none was found"
        return _checkpoint_content(checkpoint)

    beside = tuple((Damaged("checkpoint-99999999", "none"), damage) for damage in _beside())
    yield Target("newest checkpoint", folder, files, newest, tuple(contents), extra=beside)

    def resumed(copy: Path, notice: Callable[[str], None]) -> str:
        state = stage_state()
        checkpoint = load_checkpoint(copy / path.name)
        state.restore(checkpoint)
        state.position.add_step(1, 1)  # what is counted must be numbers
        state.position.add_losses(1.0, 1.0)
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state.step(1.0)
        return digest([repr(state.position), digest(model_tensors(state.model))])

    believed = Damaged(f"{path.name}/state.json", "forged")
    forged = tuple((believed, damage) for damage in _forged(path))
    yield Target("forged checkpoint", folder, (believed,), resumed, extra=forged)


def _checkpoint_content(checkpoint: Any) -> str:
    return digest([digest(checkpoint.model), digest(checkpoint.tensors), checkpoint.state["position"]])


def _other_names() -> Iterator[Damage]:
    """The list of files in state.json names others: what is not the checkpoint's is not opened."""
    for name in ("/dev/zero", "../../../../etc/passwd", "", ".", "FIFO"):

        def apply(path: Path, name: str = name) -> None:
            state = json.loads(path.read_text())
            state["format"] = 1  # whose state.json has no hash of itself
            state["sha256"][name] = "0" * 64
            path.write_text(json.dumps(state))

        yield Damage(f"names the file {name!r}", apply)


def _beside() -> Iterator[Damage]:
    yield Damage("a file called like a checkpoint", lambda path: path.write_text("x") and None)
    yield Damage("empty folder called like a checkpoint", Path.mkdir)
    yield Damage("link to itself called like a checkpoint", lambda path: path.symlink_to(path.name))


def _forged(good: Path) -> Iterator[Damage]:
    """Checkpoints with right checksums and wrong content."""

    def damage(what: str, change: Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor]], object]) -> Damage:
        def apply(path: Path) -> None:
            checkpoint = load_checkpoint(path.parent)
            state = {"position": json.loads(json.dumps(checkpoint.state["position"]))}
            model, tensors = dict(checkpoint.model), dict(checkpoint.tensors)
            change(state, model, tensors)
            step = int(path.parent.name.removeprefix("checkpoint-"))
            shutil.rmtree(path.parent)
            save_checkpoint(path.parent.parent, step, model, tensors, state)

        return Damage(what, apply)

    position = json.loads((good / "state.json").read_text())["position"]
    for name in position:
        for value in ("text", None, [], {}, -1.5, 10**400, float("nan"), [[]], [None]):
            yield damage(f"{name} is {value!r:.20}", lambda s, m, t, n=name, v=value: s["position"].update({n: v}))
        yield damage(f"no {name}", lambda s, m, t, n=name: s["position"].pop(n))
    for value in (None, [], 1, "position"):
        yield damage(f"position is {value!r}", lambda s, m, t, v=value: s.update(position=v))
    checkpoint = load_checkpoint(good)
    for which, names in ((1, list(checkpoint.model)), (2, list(checkpoint.tensors))):
        for name in (names[0], names[-1]):
            for what, other in {
                "of another shape": torch.ones(7),
                "empty": torch.ones(0),
                "of integers": torch.ones(2, 3, dtype=torch.int64),
                "not a number": None,
            }.items():

                def put(s: Any, m: Any, t: Any, w: int = which, n: str = name, o: Tensor | None = other) -> None:
                    tensors = (s, m, t)[w]
                    tensors[n] = torch.full_like(tensors[n], float("nan")) if o is None else o

                yield damage(f"{name} {what}", put)
            yield damage(f"no {name}", lambda s, m, t, w=which, n=name: (s, m, t)[w].pop(n))
    for name in ("x", "optimizer", "optimizer.x", "optimizer.x.y", "carried.9.9.hidden", "", "\x1b\n"):
        yield damage(f"a tensor {name!r}", lambda s, m, t, n=name: t.update({n: torch.ones(1)}))
        yield damage(f"a weight {name!r}", lambda s, m, t, n=name: m.update({n: torch.ones(1)}))


def trained_model(work: Path, run: RunFolder) -> Target:
    good = work / "trained"
    shutil.copytree(run.path, good)

    def read(copy: Path, notice: Callable[[str], None]) -> str:
        model, vocabulary = load(copy)
        return digest([digest(model_tensors(model)), vocabulary.words])

    sizes = []
    for key in ("num_layers", "hidden_features", "last_hidden_features", "embedding_features", "num_components"):
        for value in (10**4, 10**6, 2**31, 2**63, 10**30):

            def apply(path: Path, key: str = key, value: int = value) -> None:
                path.write_text(path.read_text().replace(f"{key} = {SIZES[key]}", f"{key} = {value}"))

            sizes.append((Damaged("config.toml", "toml"), Damage(f"{key} = {value}", apply)))
    files = (
        Damaged("train/model.safetensors", "safetensors", guarded=True),
        Damaged("vocabulary.txt", "words"),
        Damaged("config.toml", "toml"),
    )
    return Target("trained model", good, files, read, extra=tuple(sizes))


def records(work: Path, run: RunFolder, corpus: Any) -> Target:
    good = work / "records"
    shutil.copytree(run.path, good)
    filled = RunFolder.open(good)
    for step in range(6):
        where = {"stage": "train", "event": "interval", "epoch": 1, "step": step}
        filled.add_metrics(where | {"loss_nats": 5.5 - step, "elapsed_s": step / 7})
    figures = {"loss_nats": 4.25, "perplexity": 70.1, "tokens": 80, "elapsed_s": 0.5}
    filled.add_result("train", {"valid_loss_nats": 4.25, "elapsed_s": 7.5, "epochs": 3})
    filled.add_result("train", {"valid": figures, "test": figures})
    filled.add_result("dynamic", {"stage": "train", "settings": {"lr": 0.1}, "valid": figures, "elapsed_s": 2.5})

    def read(copy: Path, notice: Callable[[str], None]) -> str:
        examine(copy)
        run = RunFolder.open(copy)
        run.check_corpus(corpus)
        found = corpus_of(run, None)
        for line in summary_lines(run):
            notice(line)
        history_of(run)
        run.forget_metrics_after("train", 100, 1)
        run.add_result("train", {"epochs": 3})
        run.forget_results("finetune")
        settings = of_run.dynamic_settings(run)
        of_run.has_dynamic_result(run, "train", settings, "valid", "test")
        return digest([content_of_corpus(found), run.facts, run.metrics(), run.results])

    files = (Damaged("run.json", "json"), Damaged("results.json", "json"), Damaged("metrics.jsonl", "lines"))
    return Target("records of a run", good, files, read)


def gradient_statistics(work: Path, run: RunFolder, model: Any, corpus: Any) -> Target:
    good = work / "statistics"
    shutil.copytree(run.path, good)
    settings = of_run.dynamic_settings(RunFolder.open(good))

    def read(copy: Path, notice: Callable[[str], None]) -> str:
        folder = RunFolder.open(copy)
        statistics = of_run.cached_statistics(
            folder, folder.model_stamp("train"), model, corpus, settings, Told(notice)
        )
        return digest([digest(statistics.squares), statistics.segments])

    read(good, lambda line: None)
    (cached,) = (good / "train").glob("gradient-statistics-*")
    return Target("gradient statistics", good, (Damaged(f"train/{cached.name}", "safetensors", guarded=True),), read)
