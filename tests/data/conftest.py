"""A server on this computer, and a place to get a corpus to."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from highrank.data.catalog import CatalogEntry, Mirror, Split
from highrank.data.download import get_corpus
from tests.data.server import SPLITS, TEXTS, Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass
class Place:
    """Where one test gets a corpus to, and what it was told meanwhile."""

    target: Path
    cache: Path
    notices: list[str] = field(default_factory=list)
    shown: list[tuple[str, int, int | None]] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.notices.append(text)

    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        assert unit == "bytes"
        self.shown.append((task, done, total))

    def get(self, *mirrors: Mirror, splits: dict[str, Split] = SPLITS) -> Path:
        entry = CatalogEntry("toy", "a toy", "none", 6, splits, mirrors)
        return get_corpus(entry, self.target, cache=self.cache, display=self)

    def holds_the_corpus(self) -> bool:
        held = {path.name: path.read_bytes() for path in self.target.iterdir()}
        return held == {f"{split}.txt": content for split, content in TEXTS.items()}

    def leftovers(self) -> list[Path]:
        beside = [path for path in self.target.parent.iterdir() if path != self.target and path != self.cache]
        return beside + [path for path in self.cache.rglob("*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # attempts follow one another at once
    return Place(tmp_path / "toy", tmp_path / "cache")
