"""Models of the 2017 code: their tensors under our names, and a run folder made of them.

The original saved whole modules, which cannot be read without running their code. What is read here is a
``state_dict``: names and tensors, from a .pt, .npz or .safetensors file. Sizes follow from shapes; dropouts and
training settings are not in it and come from the recipe of the same sizes, else from the defaults.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from highrank.data import find_corpus, load_corpus
from highrank.data.catalog import CATALOG
from highrank.errors import UserError
from highrank.files import file_sha256, is_free, remove_folder
from highrank.runs.build import build_model
from highrank.runs.config import Config, parse_config, read_config
from highrank.runs.folder import RunFolder
from highrank.runs.recipes import find_recipe, recipe_names
from highrank.runs.tensors import model_tensors, put_model_tensors, read_tensors

__all__ = ["Imported", "OriginalSizes", "from_original", "import_original", "read_state_dict", "to_original"]

# The original's names and ours. {} is the number of an LSTM layer.
NAMES = {
    "encoder.weight": "backbone.embedding",
    "rnns.{}.module.weight_ih_l0": "backbone.layers.{}.lstm.weight_ih_l0",
    "rnns.{}.module.weight_hh_l0_raw": "backbone.layers.{}.lstm.weight_hh_l0",
    "rnns.{}.module.bias_ih_l0": "backbone.layers.{}.lstm.bias_ih_l0",
    "rnns.{}.module.bias_hh_l0": "backbone.layers.{}.lstm.bias_hh_l0",
    "prior.weight": "head.prior.weight",
    "latent.0.weight": "head.projection.weight",
    "latent.0.bias": "head.projection.bias",
    "decoder.weight": "head.weight",
    "decoder.bias": "head.bias",
}
MIXTURE = ("prior.weight", "latent.0.weight", "latent.0.bias")
# Without DropConnect (wdrop 0) the layers were not wrapped: there is no inner "module", and no raw weight.
LAYER_NAME = re.compile(r"rnns\.(\d+)\.(?:module\.)?(weight_ih_l0|weight_hh_l0|weight_hh_l0_raw|bias_ih_l0|bias_hh_l0)")
# A file may ask for so many times its size, where it is packed or its tensors share memory: no more is ever unpacked.
UNPACKED_FACTOR = 3
LISTED = 6  # so many names in a message, then how many more
BY_VOCABULARY = {CATALOG[name].vocabulary_size: name for name in ("penn", "wikitext-2")}


@dataclass(frozen=True)
class OriginalSizes:
    """What the shapes of an original model say. ``components`` is 0 for one plain softmax (an AWD-LSTM)."""

    vocab_size: int
    embedding_features: int
    hidden_features: int
    last_hidden_features: int
    layers: int
    components: int
    tied: bool

    def model_section(self) -> dict[str, Any]:
        """The [model] section of the configuration."""
        section: dict[str, Any] = {
            "embedding_features": self.embedding_features,
            "hidden_features": self.hidden_features,
            "last_hidden_features": self.last_hidden_features,
            "num_layers": self.layers,
            "tied": self.tied,
        }
        if self.components:
            return {"head": "mixture-of-softmaxes", "num_components": self.components, **section}
        return {"head": "softmax", **section}


class Imported(NamedTuple):
    """The new run, and the recipe whose dropouts and training settings it has (None: the defaults)."""

    run: RunFolder
    recipe: str | None


def import_original(
    file: Path, out: Path, *, corpus_name: str | None = None, data: str | None = None, overrides: Iterable[str] = ()
) -> Imported:
    """Make the run folder ``out`` of the original's ``file``, with the model as that of the stage "train".

    The vocabulary is that of the corpus: ``corpus_name``, or by its size "penn" or "wikitext-2", else the name of the
    folder ``data``. ``overrides`` are ``section.key=value``.

    Raises UserError: the file cannot be read or is not such a model; no corpus, or one of another vocabulary size.
    """
    if not is_free(out):
        raise UserError(f"{out}: exists already; give another folder with --out")
    sizes, tensors = from_original(read_state_dict(file), source=str(file))
    name = corpus_name or BY_VOCABULARY.get(sizes.vocab_size)
    if name is None and data is not None:
        name = Path(data).expanduser().resolve().name
    if name is None:
        known = " and ".join(f"{name} has {size:,}" for size, name in BY_VOCABULARY.items())
        raise UserError(
            f"{file}: its vocabulary of {sizes.vocab_size:,} words belongs to no corpus known here ({known}); "
            "name the text that it was trained on with --corpus NAME or --data DIR",
            exit_code=2,
        )
    values, recipe = _settings(sizes, name)
    config = parse_config(values, source=str(file), overrides=overrides)
    if config.train.past_decode:
        raise UserError(
            f"--set: expected a train.past_decode of 0, got {config.train.past_decode}: {file} has no past decoder",
            exit_code=2,
        )
    corpus = load_corpus(find_corpus(config.data.corpus, data), name=config.data.corpus)
    if len(corpus.vocabulary) != sizes.vocab_size:
        raise UserError(
            f"{file}: the model has {sizes.vocab_size:,} words, the corpus {corpus.name} in {corpus.folder} has "
            f"{len(corpus.vocabulary):,}; give the text that it was trained on with --corpus NAME or --data DIR"
        )
    model = build_model(config, sizes.vocab_size)
    put_model_tensors(model, tensors, source=file)
    run = RunFolder.create(out, config, corpus.vocabulary, corpus)
    try:
        run.save_best("train", model_tensors(model))
        run.log(f"imported from {file} (sha256 {file_sha256(file)})")
    except BaseException:  # a run without its model would only be in the way of the next attempt
        remove_folder(out)
        raise
    return Imported(run, recipe)


def from_original(
    tensors: Mapping[str, Tensor], *, source: str = "state_dict"
) -> tuple[OriginalSizes, dict[str, Tensor]]:
    """Sizes, and the tensors under our names; ``head.weight`` only where it is not tied to the embedding.

    Raises UserError of one line that names the unknown, missing or misshapen tensors.
    """
    named = _in_one_spelling(tensors)
    # A tied pair is stored once by formats that refuse shared memory.
    for one, other in (("encoder.weight", "decoder.weight"), ("decoder.weight", "encoder.weight")):
        if one in named:
            named.setdefault(other, named[one])
    layers = len({match[1] for name in named if (match := LAYER_NAME.fullmatch(name))}) or 1
    mixture = any(name in named for name in MIXTURE)
    expected = {name.format(n) for name in NAMES for n in range(layers) if mixture or name not in MIXTURE}
    problems = []
    if unknown := sorted(named.keys() - expected):
        problems.append(f"unknown: {_listed(unknown)}")
    if missing := sorted(expected - named.keys()):
        problems.append(f"missing: {_listed(missing)}")
    if problems:
        raise UserError(f"{source}: not the tensors of an original model; {'; '.join(problems)}")
    sizes = _sizes(named, layers)
    if wrong := _misshapen(named, sizes):
        raise UserError(f"{source}: tensors of shapes that do not fit together: {_listed(wrong)}")
    if broken := sorted(name for name, tensor in named.items() if not bool(tensor.isfinite().all())):
        raise UserError(f"{source}: infinite or not numbers: {_listed(broken)}")
    _check_softmax(sizes, source)
    ours = {_ours(name): tensor for name, tensor in named.items() if not (sizes.tied and name == "decoder.weight")}
    return sizes, ours


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``from_original``, up to spelling: our tensors under the original's names, tied ones twice."""
    full = {"head.weight": tensors["backbone.embedding"], **tensors}
    layers = sum(name.endswith("lstm.bias_ih_l0") for name in full)
    return {
        theirs.format(n): full[ours.format(n)]
        for theirs, ours in NAMES.items()
        for n in range(layers)
        if ours.format(n) in full
    }


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The named tensors of a .pt (or .pth), .npz or .safetensors file. No code in the file is ever run.

    Memory: some times the size of the file, whatever it claims to hold.
    Raises UserError, one line (three for a pickled module: how to save its tensors).
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return read_tensors(file, from_elsewhere=True)
    if file.suffix not in (".pt", ".pth", ".npz"):
        raise UserError(f"{file}: expected a file that ends in .pt, .npz or .safetensors", exit_code=2)
    content = _read_npz(file) if file.suffix == ".npz" else _read_pt(file)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file}: expected a state_dict (names and tensors), got {type(content).__name__}")
    if not all(isinstance(name, str) for name in content):  # what is no name may be no end of a thing to print
        raise UserError(f"{file}: expected a state_dict (names and tensors), got keys that are not names")
    if strangers := [name for name, value in content.items() if not _is_plain(value)]:
        raise UserError(f"{file}: expected a state_dict (names and tensors); not tensors: {_listed(strangers)}")
    _check_unpacked(file, sum(tensor.numel() * tensor.element_size() for tensor in content.values()))
    return dict(content)


def _read_pt(file: Path) -> object:
    try:
        with file.open("rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the file asks for: the answer is one line below
            source = _repacked(file, opened) if opened.read(4) == b"PK\x03\x04" else opened
            source.seek(0)
            return torch.load(source, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            raise UserError(
                f"{file}: a whole pickled model. To load it would run code from the file, so highrank does not.",
                advice="\nOpen it once with the code and the PyTorch that wrote it and save its tensors:\n"
                f"    model = torch.load({file.name!r}, map_location='cpu'); "
                "torch.save(model.state_dict(), 'state.pt')",
            ) from error
        raise UserError(f"{file}: damaged, or not a file of PyTorch's") from error
    except Exception as error:  # whatever a parser of foreign bytes raises: it says nothing that the user can mend
        raise UserError(f"{file}: damaged, or not a file of PyTorch's") from error


def _read_npz(file: Path) -> object:
    try:
        with file.open("rb") as opened, np.load(_repacked(file, opened), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{file}: damaged, or not an .npz file of plain arrays") from error


def _repacked(file: Path, opened: IO[bytes]) -> io.BytesIO:
    """The zip archive again, with plainly stored members whose sizes and checksums were found right.

    PyTorch's own reader of zip archives sees nothing else: two readers can be shown two different archives in one file.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(opened) as archive, zipfile.ZipFile(stream, "w") as plain:
        members = {info.filename: info for info in archive.infolist()}
        _check_unpacked(file, sum(info.file_size for info in members.values()))
        for name, info in members.items():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{file}: packed in a way that is not read here; only plain and deflated members are")
            with archive.open(info) as member:
                # The size is given because it is not believed without: a member that claims less is unpacked whole.
                plain.writestr(zipfile.ZipInfo(name), member.read(info.file_size))
    stream.seek(0)
    return stream


def _check_unpacked(file: Path, unpacked_bytes: int) -> None:
    size = file.stat().st_size
    if unpacked_bytes > UNPACKED_FACTOR * size:
        raise UserError(
            f"{file}: unpacks to {unpacked_bytes:,} bytes; the limit is {UNPACKED_FACTOR} times its size of {size:,}"
        )


def _is_plain(value: object) -> bool:
    """A tensor of numbers in memory: not sparse, quantized, of a class of its own, or a shape without content."""
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _in_one_spelling(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of DataParallel, layers as if wrapped, and of two recurrent weights the raw one."""
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    named = {}
    for name, tensor in tensors.items():
        match = LAYER_NAME.fullmatch(name)
        if match is None:
            named[name] = tensor
        elif match[2] != "weight_hh_l0":
            named[f"rnns.{match[1]}.module.{match[2]}"] = tensor
        elif f"{name}_raw" not in tensors:  # beside the raw weight stands its copy that DropConnect made holes in
            named[f"rnns.{match[1]}.module.weight_hh_l0_raw"] = tensor
    return named


def _sizes(named: Mapping[str, Tensor], layers: int) -> OriginalSizes:
    def size(name: str, dimension: int) -> int:
        shape = named[name].shape
        return shape[dimension] if len(shape) == 2 else 0

    return OriginalSizes(
        vocab_size=size("encoder.weight", 0),
        embedding_features=size("encoder.weight", 1),
        hidden_features=size("rnns.0.module.weight_hh_l0_raw", 1),
        last_hidden_features=size(f"rnns.{layers - 1}.module.weight_hh_l0_raw", 1),
        layers=layers,
        components=size("prior.weight", 0) if "prior.weight" in named else 0,
        tied=_same(named["encoder.weight"], named["decoder.weight"]),
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _misshapen(named: Mapping[str, Tensor], sizes: OriginalSizes) -> list[str]:
    """One phrase for each tensor whose shape or type is not what the sizes ask for."""
    vocab, width, last = sizes.vocab_size, sizes.embedding_features, sizes.last_hidden_features
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (vocab, width),
        "prior.weight": (sizes.components, last),
        "latent.0.weight": (sizes.components * width, last),
        "latent.0.bias": (sizes.components * width,),
        # An untied softmax reads the last layer itself.
        "decoder.weight": (vocab, width if sizes.components or sizes.tied else last),
        "decoder.bias": (vocab,),
    }
    widths = [width, *[sizes.hidden_features] * (sizes.layers - 1), last]
    for layer, (enter, leave) in enumerate(pairwise(widths)):
        shapes[f"rnns.{layer}.module.weight_ih_l0"] = (4 * leave, enter)
        shapes[f"rnns.{layer}.module.weight_hh_l0_raw"] = (4 * leave, leave)
        shapes[f"rnns.{layer}.module.bias_ih_l0"] = shapes[f"rnns.{layer}.module.bias_hh_l0"] = (4 * leave,)
    wrong = []
    for name, tensor in sorted(named.items()):
        if tuple(tensor.shape) != shapes[name] or 0 in tensor.shape:
            wrong.append(f"{name} is {tuple(tensor.shape)}, expected {shapes[name]}")
        elif not tensor.is_floating_point():
            wrong.append(f"{name} is of {tensor.dtype}, expected floating point")
    return wrong


def _check_softmax(sizes: OriginalSizes, source: str) -> None:
    if not sizes.components and sizes.last_hidden_features != sizes.embedding_features:
        raise UserError(
            f"{source}: one softmax over a last layer of width {sizes.last_hidden_features} beside an embedding of "
            f"width {sizes.embedding_features}: highrank's softmax head needs both to be the same"
        )


def _settings(sizes: OriginalSizes, corpus_name: str) -> tuple[dict[str, Any], str | None]:
    """Values for ``parse_config``: the recipe called like the corpus if its sizes are these, else sizes alone."""
    values: dict[str, Any] = {"data": {"corpus": corpus_name}, "model": sizes.model_section()}
    if corpus_name in recipe_names():
        recipe: Config = read_config(find_recipe(corpus_name))
        if recipe.model == parse_config(values, source=corpus_name).model:
            return msgspec.to_builtins(recipe), corpus_name
    return values, None


def _ours(name: str) -> str:
    match = LAYER_NAME.fullmatch(name)
    if match is None:
        return NAMES[name]
    return NAMES[f"rnns.{{}}.module.{match[2]}"].format(match[1])


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
