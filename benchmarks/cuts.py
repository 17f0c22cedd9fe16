"""Files of a run that end too early."""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.processes import (
    Setting,
    here,
    one_line,
    train_arguments,
)
from benchmarks.same_bits import Comparison, checksums, compare, damaged_files
from highrank.runs.checkpoint import checkpoint_folders

__all__ = ["boundaries", "cut_short"]


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
                assert name in line or Path(name).stem in line, line
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
    for path in base.values():
        shutil.rmtree(path)
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
