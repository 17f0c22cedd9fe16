"""Is a run the same, bit by bit, as another one? And is every file in it whole?"""

import hashlib
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from highrank.errors import UserError
from highrank.files import leftovers
from highrank.runs import RunFolder
from highrank.runs.checkpoint import checkpoint_folders
from highrank.runs.doctor import examine
from highrank.runs.tensors import read_tensors

__all__ = ["Comparison", "checksums", "compare", "damaged_files", "figures"]


@dataclass
class Comparison:
    """What was compared with an uninterrupted run, and what of it differs. Bits are those of tensors and losses."""

    runs: int = 0
    tensors: int = 0
    bits: int = 0
    bits_different: int = 0
    different: list[str] = field(default_factory=list)

    def add(self, other: "Comparison") -> None:
        self.runs += other.runs
        self.tensors += other.tensors
        self.bits += other.bits
        self.bits_different += other.bits_different
        self.different += other.different

    def as_result(self) -> dict[str, Any]:
        return {
            "runs_compared": self.runs,
            "tensors_compared": self.tensors,
            "bits_compared": self.bits,
            "bits_different": self.bits_different,
            "different": self.different,
        }


OF_THE_MACHINE = ("elapsed_s", "interval_s", "tokens_per_s")


def figures(run: Path) -> dict[str, dict[str, bytes]]:
    """All that must be the same bits: every record and the position, the tensors of the best and the last model."""
    last = checkpoint_folders(run / "train")[0]
    position = _untimed(json.loads((last / "state.json").read_text())["position"])
    records = [_untimed(record) for record in RunFolder.open(run).metrics()]
    files = {"best": run / "train/model.safetensors", "last": last / "model.safetensors"}
    files["state"] = last / "state.safetensors"
    return {
        "metrics": {str(number): json.dumps(record).encode() for number, record in enumerate(records)},
        "position": {"position": json.dumps(position).encode()},
        **{part: {n: t.numpy().tobytes() for n, t in read_tensors(path).items()} for part, path in files.items()},
    }


def _untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in OF_THE_MACHINE}


def compare(run: Path, reference: Path) -> Comparison:
    ours, theirs = figures(run), figures(reference)
    found = Comparison(runs=1)
    for part in ours:
        for name in ours[part].keys() | theirs[part].keys():
            one, other = ours[part].get(name, b""), theirs[part].get(name, b"")
            found.bits += 8 * len(other)
            found.tensors += part in ("best", "last", "state")
            if one != other:
                found.different.append(f"{run.name}: {part} {name}")
                found.bits_different += _bits_different(one, other)
    return found


def _bits_different(one: bytes, other: bytes) -> int:
    if len(one) != len(other):
        return 8 * max(len(one), len(other))
    pairs = np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)
    return int(np.unpackbits(pairs).sum())


def damaged_files(run: Path) -> list[str]:
    """Files of the run that were left behind, or that do not parse to their last byte."""
    wrong = [f"{path} was left behind" for path in leftovers(run, run / "train", run / "finetune")]
    readers: dict[str, Callable[[Path], object]] = {
        ".safetensors": read_tensors,
        ".json": lambda path: json.loads(path.read_text()),
        ".toml": lambda path: tomllib.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().split("\n")[:-1]],
        ".txt": lambda path: path.read_text(),
    }
    for path in sorted(run.rglob("*")):
        if path.suffix in readers:
            try:
                readers[path.suffix](path)
            except (UserError, ValueError) as error:
                wrong.append(f"{path}: {error}")
            if path.suffix in (".jsonl", ".txt") and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                wrong.append(f"{path}: its last line has no end")
    return wrong + [f"doctor: {finding.place}: {finding.text}" for finding in examine(run).wrong]


def checksums(run: Path) -> dict[str, str]:
    """Of every file of the run but the notes of its lock."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".lock-holder", ".writing") and "tensorboard" not in path.parts
    }
