"""What every test stands on: the user's files are out of reach; the real corpora are found, or the test is skipped."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).resolve().parent.parent

pytest.register_assert_rewrite("tests.parity")

# Under xdist every worker is a process: one thread each, or they fight for the cores. Said in the environment, before
# anything imports torch, so that tests without torch need not load it and subprocesses of a test inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")

# Without a GPU Triton's kernels run in its interpreter. Triton reads this when it is imported: too late afterwards.
os.environ.setdefault("TRITON_INTERPRET", "1")

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(REPOSITORY / ".pytest_cache" / "hypothesis"))


@pytest.fixture(scope="session", autouse=True)
def _users_files_out_of_reach(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Downloads and caches go to a folder of this test run; no data folder of the user's is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIGHRANK_CACHE", str(tmp_path_factory.mktemp("highrank-cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("highrank-data")))  # of corpora that were fetched
        patch.delenv("HIGHRANK_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of the real corpora, ``penn/`` and ``wikitext-2/`` with train.txt, valid.txt and test.txt in each."""
    folder = Path(os.environ.get("HIGHRANK_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    missing = [name for name in ("penn", "wikitext-2") if not (folder / name / "train.txt").is_file()]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} under {folder}: set HIGHRANK_TEST_DATA to the folder of the corpora")
    return folder


@pytest.fixture(scope="session")
def kjv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus, built."""
    from highrank.data.kjv import build_kjv

    return build_kjv(tmp_path_factory.mktemp("kjv") / "kjv")


@pytest.fixture(scope="session")
def small_text(kjv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text of a size that trains in seconds."""
    from benchmarks.small_text import write_small_text

    return write_small_text(kjv, tmp_path_factory.mktemp("verses") / "small-text")


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """A real headless Chromium."""
    from tests.browser import chromium

    with chromium() as found:
        yield found
