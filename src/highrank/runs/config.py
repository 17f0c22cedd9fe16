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
MOST = 2**31 - 1
Count = Annotated[int, Meta(ge=1, le=MOST)]
CountOrZero = Annotated[int, Meta(ge=0, le=MOST)]
Tokens = Annotated[int, Meta(ge=0, le=2**53)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Width = Annotated[int, Meta(ge=1, le=1_000_000)]
Layers = Annotated[int, Meta(ge=1, le=100)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Head = Literal["softmax", "mixture-of-contexts", "mixture-of-softmaxes"]


TOML_LIMIT_BYTES = 1 << 16
MOST_DOTS = 200
MARK = re.compile(r"# (\d{1,6}) settings;")
LAST_UNMARKED = "dynamic.mean_square"  # with which files ended that do not say how many settings they hold


def Says(meaning: str) -> Meta:  # noqa: N802 - it stands where a type does
    """What a setting means, for the reference (docs/settings.md)."""
    return Meta(description=meaning)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """A part of the configuration; unknown keys are refused."""


class DataSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text. The vocabulary is that of the whole corpus, however little of it is used."""

    corpus: Annotated[
        str, Says("a name that `highrank data list` knows, or of a folder of `HIGHRANK_DATA`; `--data` overrides it")
    ]
    train_tokens: Annotated[Tokens, Says("only the first so many of the training text; 0: all")] = 0
    heldout_tokens: Annotated[Tokens, Says("only the first so many of the validation and of the test text; 0: all")] = 0


class ModelSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes. A softmax over a last layer of another width than the embedding gets the tanh projection of the
    mixtures."""

    head: Annotated[Head, Says("what turns the last hidden state into probabilities")] = "mixture-of-softmaxes"
    num_components: Annotated[Width, Says("softmaxes, or contexts, of the mixture; `softmax` ignores it")] = 15
    embedding_features: Annotated[Width, Says("width of input and output embedding and of the contexts, D")] = 280
    hidden_features: Annotated[Width, Says("width of the LSTM layers but the last")] = 960
    last_hidden_features: Annotated[Width, Says("width of the last LSTM layer")] = 620
    num_layers: Annotated[Layers, Says("LSTM layers")] = 3
    tied: Annotated[bool, Says("is the output embedding the input embedding too?")] = True
    embedding_init: Annotated[
        Literal["uniform", "log-counts"],
        Says("the paper's, within 0.1 of zero; or vectors whose norms follow log(1 + count of the word)"),
    ] = "uniform"

    @property
    def components(self) -> int:
        """Contexts of a token: one of a softmax, whatever ``num_components`` says."""
        return 1 if self.head == "softmax" else self.num_components


class DropoutSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probabilities of being dropped. One mask a segment, the same at every time step."""

    embedding: Annotated[Probability, Says("whole word types")] = 0.1
    input: Annotated[Probability, Says("features of the embedded input")] = 0.4
    hidden: Annotated[Probability, Says("features between LSTM layers")] = 0.225
    output: Annotated[Probability, Says("features of the last layer's output")] = 0.4
    context: Annotated[Probability, Says("features of the context vectors")] = 0.29
    weight: Annotated[Probability, Says("single hidden-to-hidden weights (DropConnect)")] = 0.5


class TrainSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The defaults are the paper's for Penn Treebank: SGD at a constant rate, with an even average of the weights once
    validation stalls."""

    seed: Annotated[Seed, Says("of every random draw")] = 1111
    epochs: Annotated[Count, Says("passes over the training text")] = 1000
    batch: Annotated[Count, Says("columns that the text is cut into; an update is of one segment of each")] = 12
    micro_batch: Annotated[CountOrZero, Says("columns in memory at once, a divisor of `batch`; 0: all")] = 0
    bptt: Annotated[int, Meta(ge=5, le=MOST), Says("time steps of a segment, about: drawn anew for each")] = 70
    max_length_delta: Annotated[CountOrZero, Says("a segment has at most so many steps more than `bptt`")] = 40
    partial_shuffle: Annotated[bool, Says("begin each column at another token in every epoch")] = False
    optimizer: Annotated[Literal["sgd", "adamw", "rmsprop"], Says("RMSProp is Adam with beta1 = 0")] = "sgd"
    lr: Annotated[Positive, Says("learning rate for a segment of `bptt` steps; the peak of a schedule")] = 20.0
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Says("how the rate falls to zero over all `epochs`, if it does")
    ] = "constant"
    warmup: Annotated[
        Probability,
        Says("share of all updates in which the rate rises to its peak, from zero: the first update changes nothing"),
    ] = 0.0
    clip: Annotated[Positive, Says("largest norm of the gradient")] = 0.25
    weight_decay: Annotated[
        NotNegative, Says("as the optimizer has it: in SGD a gradient of so many times the weight")
    ] = 1.2e-6
    alpha: Annotated[NotNegative, Says("weight of the activation penalty: mean square of the dropped output")] = 2.0
    beta: Annotated[NotNegative, Says("weight of the temporal one: mean square of its change in a step")] = 1.0
    past_decode: Annotated[
        NotNegative, Says("weight of past decode regularisation: the last word read, told from what is to come; 0: off")
    ] = 0.0
    nonmono: Annotated[
        Count, Says("averaging starts when a validation loss is above the best of all but the last so many")
    ] = 5
    average_from: Annotated[CountOrZero, Says("or at this epoch; 0: by the validation loss only")] = 0
    average_power: Annotated[
        float, Meta(ge=0, le=1000), Says("weights of the k-th averaged update count about k to this power; 0: alike")
    ] = 0.0
    min_posterior: Annotated[
        Probability, Says("the loss's posterior filter, `highrank.LossOptions`; 0: only what is below rounding")
    ] = 0.0
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Says("of what the head's products multiply, on a GPU the recurrence's too; weights and sums stay in float32"),
    ] = "float32"
    recurrence: Annotated[
        Literal["torch", "triton"],
        Says("who computes it: PyTorch (on a GPU cuDNN), or our kernels for NVIDIA GPUs, which need bfloat16"),
    ] = "torch"
    implementation: Annotated[
        Literal["auto", "chunked"],
        Says("of the loss, here and in evaluation: the fastest that can run, or PyTorch's operations on a GPU too"),
    ] = "auto"
    cuda_graphs: Annotated[
        bool,
        Says("on an NVIDIA GPU: record forward and backward pass once a length of segment and replay them: same bits"),
    ] = False
    valid_batch: Annotated[Count, Says("columns of the validations during training")] = 10


class FinetuneSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Averaged from its first update on, from the best trained model, at a constant rate. All else as in training, the
    optimizer too."""

    epochs: Annotated[Count, Says("passes over the training text at most")] = 1000
    lr: Annotated[Positive, Says("learning rate, of the same optimizer: of AdamW and RMSProp at most 1")] = 25.0
    nonmono: Annotated[Count, Says("it ends when a validation loss is above the best of all but the last so many")] = 5


class DynamicSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Dynamic evaluation, which learns from the text that it has scored."""

    lamb: Annotated[NotNegative, Says("decay towards the trained weights")] = 0.02
    lr: Annotated[NotNegative, Says("learning rate")] = 0.002
    epsilon: Annotated[Positive, Says("added to the divisor, the root of a weight's squared gradients")] = 0.001
    bptt: Annotated[Count, Says("tokens of a segment: scored, then learned from")] = 5
    batch: Annotated[Count, Says("columns of the pass over the training text that sums squared gradients")] = 100
    mean_square: Annotated[bool, Says("divide by the root of their mean instead of that of their sum")] = False


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
                f"train.cuda_graphs: records the one pass of an update, got a train.micro_batch of {train.micro_batch} "
                f"of {train.batch} columns"
            )
        if train.past_decode and train.min_posterior:
            raise ValueError(
                "train.min_posterior: expected 0 with train.past_decode, which leaves out no posterior, "
                f"got {train.min_posterior}"
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
    for override in overrides:
        _apply(merged, override)
    _refuse_unknown(merged, "--set")
    config = _converted(merged)
    if isinstance(config, str):
        raise UserError(f"{source if config == _converted(values) else '--set'}: {config}", exit_code=2)
    return config


def _converted(values: Mapping[str, Any]) -> Config | str:
    """Or what is wrong."""
    try:
        return msgspec.convert(values, Config)
    except (msgspec.ValidationError, ValueError) as error:
        return _explained(error, values)


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


def _apply(values: dict[str, Any], override: str) -> None:
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
        choices, *_ = get_args(field_type)  # of Annotated[Literal[...], ...]
        expected = f"expected one of {', '.join(get_args(choices))}"
    expected = expected.partition(", got")[0].replace("Expected", "expected").replace("`", "")
    value = values[section][name]
    hint = " (numbers are written as in TOML: 0.5, 1000)" if _meant_as_number(value, expected) else ""
    return f"{section}.{name}: {expected}, got {_shown(value)}{hint}"


def _meant_as_number(value: object, expected: str) -> bool:
    """What a person takes for a number that fits and TOML does not: .5 and 5. for any, 1e3 for a whole one."""
    if isinstance(value, float):
        return value.is_integer() and expected.startswith("expected int")
    try:
        return (
            isinstance(value, str)
            and expected.startswith(("expected int", "expected float"))
            and math.isfinite(float(value))
        )
    except ValueError:
        return False


def _shown(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists in lists
        return f"a value of type {type(value).__name__} too long to show"


def _section_types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(Config)}
