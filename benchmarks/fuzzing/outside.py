"""Readers of files from elsewhere: models of the 2017 code, archives that a server sends."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from benchmarks.fuzzing.target import Damaged, Target, Told, digest
from benchmarks.textbook import TextbookModel
from highrank.data import download, encoding
from highrank.data.catalog import CatalogEntry, Mirror, RemoteFile, Split
from highrank.evaluate import rank, read_matrix
from highrank.files import file_sha256
from highrank.runs.original import from_original, read_state_dict

__all__ = ["archives", "imports", "matrices"]

SPLITS = ("train", "valid", "test")


def matrices(work: Path) -> Target:
    """Log-probabilities of another program in a .npy file, measured as ``highrank rank --matrix`` does."""
    good = work / "matrices"
    good.mkdir()
    np.save(good / "matrix.npy", torch.log_softmax(torch.randn(7, 5, dtype=torch.float64), -1).numpy())

    def read(copy: Path, notice: Callable[[str], None]) -> str:
        figures = rank(read_matrix(copy / "matrix.npy")).as_dict()
        return digest({name: repr(value) for name, value in figures.items() if name != "elapsed_s"})

    return Target("saved matrix", good, (Damaged("matrix.npy", "npy"),), read)


def imports(work: Path) -> Iterator[Target]:
    model = TextbookModel(vocab_size=12, emsize=4, nhid=6, nhidlast=5, nlayers=2, n_experts=3)
    state = dict(model.state_dict())
    arrays = {name: tensor.numpy() for name, tensor in state.items()}

    def target(name: str, kind: str, file: str, save: Callable[[Path], object]) -> Target:
        good = work / f"import-{kind}"
        good.mkdir()
        save(good / file)

        def read(copy: Path, notice: Callable[[str], None]) -> str:
            sizes, tensors = from_original(read_state_dict(copy / file), source=file)
            return digest([repr(sizes), digest(tensors)])

        return Target(name, good, (Damaged(file, kind),), read)

    yield target("import of .pt", "pt", "state.pt", lambda path: torch.save(state, path))
    yield target(
        "import of old .pt",
        "legacy",
        "state.pt",
        lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
    )
    yield target("import of .npz", "npz", "state.npz", lambda path: np.savez(path, **arrays))
    untied = {name: tensor for name, tensor in state.items() if name != "encoder.weight"}
    yield target(
        "import of .safetensors",
        "safetensors",
        "state.safetensors",
        lambda path: safetensors.torch.save_file(untied, path),
    )


def archives(work: Path, text: Path) -> Iterator[Target]:
    """Fetched, without a network: what the server sends is damaged, and no checksum of the archive stands before it."""
    contents = {f"data/{split}.txt": (text / f"{split}.txt").read_bytes() for split in SPLITS}
    splits = {
        split: Split(encoding.count_tokens(text / f"{split}.txt"), f"sha256:{file_sha256(text / f'{split}.txt')}")
        for split in SPLITS
    }
    download._reachable = lambda urls: set(urls)

    def fetched(file: RemoteFile, downloads: Path, notice: Callable[[str], None]) -> Path:
        path = downloads.parent.parent.parent / file.url.rpartition("/")[2]
        if not path.is_file() or path.stat().st_size > file.limit_bytes:  # what the download itself would refuse
            raise download.MirrorError("sends nothing, or too much")
        return path

    download._fetch = fetched

    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)

    def tarred(mode: Any) -> Callable[[Path], None]:
        def save(path: Path) -> None:
            with tarfile.open(path, mode) as archive:
                for name, content in contents.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

        return save

    for kind, save in (("zip", zipped), ("tar", tarred("w:")), ("tgz", tarred("w:gz"))):
        good = work / f"archive-{kind}"
        good.mkdir()
        save(good / f"toy.{kind}")
        remote = RemoteFile(f"https://toy.example/toy.{kind}", {s: f"data/{s}.txt" for s in SPLITS}, None, 4 << 20)
        entry = CatalogEntry("toy", "a toy", "none", 12, splits, (Mirror("toy.example", (remote,)),))

        def read(copy: Path, notice: Callable[[str], None], entry: CatalogEntry = entry) -> str:
            target = copy / "out" / "toy"
            try:
                download.get_corpus(entry, target, cache=copy / "cache", display=Told(notice))
                return digest({path.name: path.read_bytes() for path in target.iterdir()})
            finally:
                found = {path.name for path in copy.iterdir()} | {path.name for path in (copy / "out").glob("*")}
                assert found <= {"out", "toy", "cache", "toy.zip", "toy.tar", "toy.tgz"}, found
                assert not list(Path("/tmp").glob("highrank-outside*"))

        yield Target(f"archive .{kind}", good, (Damaged(f"toy.{kind}", kind, guarded=True),), read)
