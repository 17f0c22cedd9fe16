"""Records of a run as they are read again."""

import os
import tracemalloc
from pathlib import Path

from highrank.runs.records import read_metrics

RECORD = b'{"stage": "train", "event": "validation", "epoch": 1, "step": 2}\n'


def test_what_is_no_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(RECORD)
    expected = read_metrics(tmp_path)
    assert [record["step"] for record in expected] == [2]
    os.truncate(path, 64 << 20)
    tracemalloc.start()
    try:
        assert read_metrics(tmp_path) == expected
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20
