"""What the tests of resuming and of faults share: one run that was left alone, with which all others are compared."""

from pathlib import Path

import pytest

from benchmarks.processes import Setting


@pytest.fixture(scope="session")
def setting(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting.make(small_text, tmp_path_factory.mktemp("faults"))
