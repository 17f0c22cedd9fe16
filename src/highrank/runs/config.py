"""The settings of a run: frozen typed sections, read from TOML, overridden by ``section.key=value``."""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import tomli_w
from msgspec import Meta

from highrank.errors import UserError
from highrank.reading import read_bytes

__all__ = [
    "Config",
    "changed_settings",
    "differing_settings",
    "nearest_spelling",
    "parse_config",
    "read_config",
    "read_whole_config",
    "to_toml",
    "to_whole_toml",
]

# The upper ends keep sizes computed from them within 64 bits, and leave room for anything that a machine can hold.
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Width = Annotated[int, Meta(ge=1, le=1_000_000)]
Layers = Annotated[int, Meta(ge=1, le=100)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, lt=1)]

TOML_LIMIT_BYTES = 1 << 16
MOST_DOTS = 200
MARK = re.compile(r"# (\d{1,6}) settings;")
LAST_UNMARKED = "dynamic.mean_square"  # with which files ended that do not say how many settings they hold


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """A part of the configuration; unknown keys are refused."""


class DataSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """corpus: a name that ``highrank data list`` knows, or of a folder of ``HIGHRANK_DATA``; ``--data`` overrides it.
    train_tokens, heldout_tokens: use only the first so many tokens of the training text, and of the validation and the
    test text (0: all); the vocabulary is that of the whole corpus."""

    corpus: str
    train_tokens: Annotated[int, Meta(ge=0, le=2**53)] = 0
    heldout_tokens: Annotated[int, Meta(ge=0, le=2**53)] = 0


class ModelSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes. The output embedding has ``embedding_features``, tied to the input embedding if ``tied``.

    ``num_components`` counts the softmaxes (or contexts) of a mixture; the head ``softmax`` ignores it. A softmax over
    a last layer of another width than the embedding gets the tanh projection of the mixtures. ``embedding_init``: the
    paper's embedding begins uniform in +-0.1; "log-counts" gives these vectors norms that follow the logarithms of the
    words' counts in the training text."""

    head: Literal["softmax", "mixture-of-contexts", "mixture-of-softmaxes"] = "mixture-of-softmaxes"
    num_components: Width = 15
    embedding_features: Width = 280
    hidden_features: Width = 960
    last_hidden_features: Width = 620
    num_layers: Layers = 3
    tied: bool = True
    embedding_init: Literal["uniform", "log-counts"] = "uniform"


class DropoutSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probabilities: of word types (embedding), of the embedded input, between layers (hidden), of the last layer's
    output, of the contexts, of single hidden-to-hidden weights (weight)."""

    embedding: Probability = 0.1
    input: Probability = 0.4
    hidden: Probability = 0.225
    output: Probability = 0.4
    context: Probability = 0.29
    weight: Probability = 0.5


class TrainSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """batch columns, walked in micro-batches of ``micro_batch`` columns (0: all at once); segments of about ``bptt``;
    ``lr`` for a segment of length bptt; gradient norm clipped at ``clip``; ``alpha`` and ``beta`` weigh the activation
    and temporal activation penalties; averaging starts when the validation loss is above the best of all but the last
    ``nonmono`` values, or at ``average_from`` (an epoch; 0: never by date). ``min_posterior`` is the loss's posterior
    filter (0: only what is below rounding; see ``highrank.LossOptions``).

    The paper's recipe is "sgd" at a constant rate with an even average. ``lr`` is the peak of a ``schedule`` over all
    ``epochs``, reached after the share ``warmup`` of them. In the average of the weights those of the k-th update count
    about k^``average_power``: late ones more than early ones above 0. With ``partial_shuffle`` each column begins at
    another token in every epoch.

    With the ``precision`` "bfloat16" the head's matrix products are of numbers rounded to it (on a GPU those of the
    recurrence too). Weights and sums stay in float32, and so does all evaluation. ``recurrence``: who computes the
    recurrence in training, PyTorch (on a GPU cuDNN), or a kernel of highrank's for NVIDIA GPUs, which asks for
    bfloat16. ``cuda_graphs``: on an NVIDIA GPU the passes of an update are recorded, one for each length of a segment,
    and replayed: the same bits in less time of the host's."""

    seed: Seed = 1111
    epochs: Count = 1000
    batch: Count = 12
    micro_batch: CountOrZero = 0
    bptt: Annotated[int, Meta(ge=5, le=2**31 - 1)] = 70
    max_length_delta: CountOrZero = 40
    partial_shuffle: bool = False
    optimizer: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    lr: Positive = 20.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Probability = 0.0
    clip: Positive = 0.25
    weight_decay: NotNegative = 1.2e-6
    alpha: NotNegative = 2.0
    beta: NotNegative = 1.0
    nonmono: Count = 5
    average_from: CountOrZero = 0
    average_power: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    min_posterior: Probability = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    recurrence: Literal["torch", "triton"] = "torch"
    cuda_graphs: bool = False
    valid_batch: Count = 10


class FinetuneSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Averaged SGD from the best trained model on, until the validation loss is above the best of all but the last
    ``nonmono`` values. All else as in training, the optimizer too, whose rate ``lr`` then is."""

    epochs: Count = 1000
    lr: Positive = 25.0
    nonmono: Count = 5


class DynamicSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Dynamic evaluation: decay towards the trained weights (lamb), learning rate, floor of the divisor (epsilon),
    segment length (bptt), columns of the statistics pass (batch), root of the mean instead of the sum of squared
    gradients (mean_square)."""

    lamb: NotNegative = 0.02
    lr: NotNegative = 0.002
    epsilon: Positive = 0.001
    bptt: Count = 5
    batch: Count = 100
    mean_square: bool = False


class Config(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of a run. A run made before a setting was added is read with its default, so the default of a new
    setting must mean what was done before."""

    data: DataSection
    model: ModelSection = ModelSection()
    dropout: DropoutSection = DropoutSection()
    train: TrainSection = TrainSection()
    finetune: FinetuneSection = FinetuneSection()
    dynamic: DynamicSection = DynamicSection()

    def __post_init__(self) -> None:
        train = self.train
        if not (self.data.corpus and self.data.corpus.isprintable()):
            raise ValueError(f"data.corpus: expected a name of printable characters, got {self.data.corpus!r}")
        for name in self.__struct_fields__:
            section = getattr(self, name)
            for key in section.__struct_fields__:
                value = getattr(section, key)
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{name}.{key}: expected a finite number, got {value}")
        if train.micro_batch and train.batch % train.micro_batch:
            raise ValueError(
                f"train.micro_batch: expected a divisor of train.batch {train.batch}, got {train.micro_batch}"
            )
        if train.cuda_graphs and self.micro_batch != train.batch:
            raise ValueError(
                f"train.cuda_graphs: records updates of one pass, got a train.micro_batch of {train.micro_batch} "
                f"of {train.batch} columns"
            )
        if train.recurrence == "triton" and train.precision != "bfloat16":
            raise ValueError(f"train.recurrence: triton needs train.precision bfloat16, got {train.precision}")

    @property
    def micro_batch(self) -> int:
        return self.train.micro_batch or self.train.batch


def parse_config(values: Mapping[str, Any], *, source: str, overrides: Iterable[str] = ()) -> Config:
    """A configuration from nested ``values``, with ``section.key=value`` overrides on top.

    Raises UserError of one line for an unknown key (with the nearest spelling), a wrong type or a value out of range.
    """
    merged = {name: dict(section) if isinstance(section, Mapping) else section for name, section in values.items()}
    _refuse_unknown(merged, source)
    asked = {_apply(merged, override) for override in overrides}
    _refuse_unknown(merged, "--set")
    try:
        return msgspec.convert(merged, Config)
    except (msgspec.ValidationError, ValueError) as error:
        explained = _explained(error, merged)
        where = "--set" if explained.partition(":")[0] in asked else source
        raise UserError(f"{where}: {explained}", exit_code=2) from error


def read_config(path: Path, *, overrides: Iterable[str] = ()) -> Config:
    return parse_config(_parsed(_read_text(path), path), source=str(path), overrides=overrides)


def read_whole_config(path: Path) -> Config:
    """The configuration of a run, which this or an earlier version wrote (``to_whole_toml``).

    A setting that was added since has its default, which means what was done before. Raises UserError if the file was
    cut short: there defaults would take the place of what it said.
    """
    text = _read_text(path)
    values = _parsed(text, path)
    sections = {section: settings for section, settings in values.items() if isinstance(settings, Mapping)}
    written = {f"{section}.{key}" for section, settings in sections.items() for key in settings}
    if mark := MARK.match(text):
        if len(written) < int(mark[1]):
            raise UserError(f"{path}: cut short: {len(written)} of {mark[1]} settings are there")
    elif LAST_UNMARKED not in written:
        raise UserError(f"{path}: cut short: {LAST_UNMARKED} is missing")
    return parse_config(values, source=str(path))


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, TOML_LIMIT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        values = _from_toml(text)
    except ValueError as error:  # of TOML, or of a number of too many digits
        raise UserError(f"{path}: not valid TOML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid TOML: nested too deeply") from error
    values.pop("promise", None)  # a recipe's words about cost and result are for people
    return values


def to_toml(config: Config) -> str:
    """All settings, defaults included."""
    return tomli_w.dumps(msgspec.to_builtins(config))


def to_whole_toml(config: Config) -> str:
    """The same below their number, which tells whether the file was cut short."""
    number = sum(len(settings) for settings in msgspec.to_builtins(config).values())
    return f"# {number} settings; with fewer this file was cut short.\n{to_toml(config)}"


def differing_settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """By ``section.key`` of each setting that differs its value in every configuration."""
    first, *_ = flat = [_flat(config) for config in configs]
    return {name: [each[name] for each in flat] for name in first if any(each[name] != first[name] for each in flat)}


def changed_settings(before: Config, after: Config) -> dict[str, tuple[str, str]]:
    """By ``section.key`` of each setting that differs its value before and after, as config.toml has it."""
    differing = differing_settings([before, after])
    return {name: (json.dumps(old), json.dumps(new)) for name, (old, new) in differing.items()}


def _flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, settings in msgspec.to_builtins(config).items()
        for key, value in settings.items()
    }


def _from_toml(text: str) -> dict[str, Any]:
    """Raises ValueError, or RecursionError for values that are nested too deeply."""
    # The parser's memory grows with the square of the length of a dotted key, which stands in one line.
    if any(line.count(".") > MOST_DOTS for line in text.split("\n")):
        raise ValueError(f"a line of more than {MOST_DOTS} dots")
    return tomllib.loads(text)


def _apply(values: dict[str, Any], override: str) -> str:
    """Returns the ``section.key`` that it sets."""
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise UserError(f"--set: expected section.key=value, got {override!r}", exit_code=2)
    try:
        parsed = _from_toml(f"value = {text.strip()}")
    except ValueError:
        parsed = {}
    except RecursionError as error:
        raise UserError(
            f"--set {section}.{name}: expected a value, got one that is nested too deeply", exit_code=2
        ) from error
    # A bare word is a string, and so is what TOML takes for more than one value.
    values.setdefault(section, {})[name] = parsed["value"] if len(parsed) == 1 else text.strip()
    return f"{section}.{name}"


def _refuse_unknown(values: Mapping[str, Any], source: str) -> None:
    sections = _section_types()
    for section, settings in values.items():
        if section not in sections:
            raise UserError(f"{source}: unknown section [{section}]{nearest_spelling(section, sections)}", exit_code=2)
        if not isinstance(settings, Mapping):
            raise UserError(f"{source}: expected a section [{section}], got the value {_shown(settings)}", exit_code=2)
        names = [field.name for field in msgspec.structs.fields(sections[section])]
        for name in settings:
            if name not in names:
                raise UserError(f"{source}: unknown key {section}.{name}{nearest_spelling(name, names)}", exit_code=2)


def nearest_spelling(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` for a message, or what is known where nothing is near."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(known)}"


def _explained(error: Exception, values: Mapping[str, Any]) -> str:
    """What was expected and what came, in one line: msgspec says where and what it expected."""
    expected, _, place = str(error).partition(" - at `$.")
    section, _, name = place.rstrip("`").partition(".")
    if not name:
        return " ".join(str(error).split())
    if expected.startswith("Invalid enum value"):
        field_type = {field.name: field.type for field in msgspec.structs.fields(_section_types()[section])}[name]
        expected = f"expected one of {', '.join(get_args(field_type))}"
    expected = expected.partition(", got")[0].replace("Expected", "expected").replace("`", "")
    value = values[section][name]
    hint = " (numbers are written as in TOML: 0.5, 1000)" if _meant_as_number(value, expected) else ""
    return f"{section}.{name}: {expected}, got {_shown(value)}{hint}"


def _meant_as_number(value: object, expected: str) -> bool:
    """What a person takes for a number that fits and TOML does not: .5 and 5. for any, 1e3 for a whole one."""
    if isinstance(value, float):
        return value.is_integer() and expected.startswith("expected int")
    try:
        return isinstance(value, str) and expected.startswith("expected") and math.isfinite(float(value))
    except ValueError:
        return False


def _shown(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists in lists
        return f"a value of type {type(value).__name__} too long to show"


def _section_types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(Config)}
