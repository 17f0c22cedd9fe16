"""Corpora of the catalog, fetched from a server on this computer: small texts in place of the published ones."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from highrank.data import catalog
from tests.data.server import MEMBERS, SPLITS, TEXTS, Server, packed, zipped

__all__ = ["corpora_from_this_computer"]


def corpora_from_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, every corpus of the catalog is a small one from a server that ends with the test run, and
    what is fetched goes into the current folder, where no other test finds it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(Path.cwd() / "data-home"))
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mirror = packed(server, zipped({MEMBERS[split]: TEXTS[split] for split in TEXTS}))
    for name, entry in catalog.CATALOG.items():
        monkeypatch.setitem(catalog.CATALOG, name, replace(entry, splits=SPLITS, mirrors=(mirror,)))
