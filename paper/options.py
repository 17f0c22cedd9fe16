"""The options of the paper's command lines, with their defaults, and what each means in highrank's configuration.

Shared by the scripts beside it. Options may be abbreviated (``--epoch``), as they could be then.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

if importlib.util.find_spec("highrank") is None:
    sys.exit("highrank is not installed for this Python: pip install -e .. (or make venv, and use ../.venv/bin/python)")

import highrank.cli.environment  # noqa: F401, I001 - before PyTorch is loaded
import msgspec
import torch

from highrank.cli.launch import leave, report
from highrank.data import Corpus
from highrank.errors import UserError
from highrank.evaluate import evaluate_run
from highrank.launcher import check_launcher
from highrank.runs import Config, RunFolder, parse_config
from highrank.train import Machine

__all__ = [
    "check_data",
    "dynamic_config",
    "dynamic_parser",
    "find_model",
    "finetune_config",
    "finetune_parser",
    "generate_parser",
    "gpus",
    "print_perplexities",
    "run_script",
    "shared",
    "training_config",
    "training_device",
    "training_parser",
    "workers_for",
]

AFTER_LOSS = "the last checkpoint stands, go on with --continue_train --save FOLDER"  # when a worker is lost


class Option(NamedTuple):
    name: str
    default: int | float
    setting: str  # in highrank's configuration
    help: str


SIZES_AND_DROPOUTS = (
    Option("emsize", 400, "model.embedding_features", "width of the word embeddings"),
    Option("nhid", 1150, "model.hidden_features", "width of the LSTM layers but the last"),
    Option("nlayers", 3, "model.num_layers", "LSTM layers"),
    Option("n_experts", 10, "model.num_components", "softmaxes in the mixture"),
    Option("dropout", 0.4, "dropout.output", "of the last layer's output"),
    Option("dropouth", 0.3, "dropout.hidden", "between layers"),
    Option("dropouti", 0.65, "dropout.input", "of the embedded words"),
    Option("dropoute", 0.1, "dropout.embedding", "of whole words"),
    Option("dropoutl", -0.2, "dropout.context", "of the contexts; negative: as dropouth"),
    Option("wdrop", 0.5, "dropout.weight", "of single hidden-to-hidden weights"),
)
NHIDLAST = Option("nhidlast", -1, "model.last_hidden_features", "width of the last LSTM layer; negative: as emsize")
TRAINING = (
    Option("clip", 0.25, "train.clip", "limit of the gradient's norm"),
    Option("batch_size", 20, "train.batch", "columns of text"),
    Option("small_batch_size", -1, "train.micro_batch", "columns at once; negative: as batch_size"),
    Option("bptt", 70, "train.bptt", "time steps of a segment"),
    Option("max_seq_len_delta", 40, "train.max_length_delta", "a segment may be so much longer than bptt"),
    Option("seed", 1111, "train.seed", "random seed"),
    Option("alpha", 2.0, "train.alpha", "weight of the activation penalty"),
    Option("beta", 1.0, "train.beta", "weight of the temporal activation penalty"),
    Option("wdecay", 1.2e-6, "train.weight_decay", "weight decay"),
)
# Fine-tuning takes them from the run where they are not given. Its defaults then were the same, but for one.
FINETUNING = tuple(option._replace(default=80) if option.name == "batch_size" else option for option in TRAINING)
# What training and fine-tuning have each for themselves; {} is the stage.
OF_A_STAGE = (
    Option("lr", 30.0, "{}.lr", "learning rate"),
    Option("epochs", 8000, "{}.epochs", "epochs at most"),
    Option("nonmono", 5, "{}.nonmono", "validations without a new best before the loss counts as stalled"),
)
DYNAMIC = (
    Option("lamb", 0.02, "dynamic.lamb", "decay towards the trained weights"),
    Option("epsilon", 0.001, "dynamic.epsilon", "floor of the divisor"),
    Option("lr", 0.002, "dynamic.lr", "learning rate"),
    Option("batch_size", 100, "dynamic.batch", "columns of text for the gradient statistics"),
    Option("bptt", 5, "dynamic.bptt", "time steps of a segment"),
)
STAGE_OF_FILE = {"model.pt": "train", "finetune_model.pt": "finetune"}


def training_parser() -> argparse.ArgumentParser:
    """The options of main.py."""
    parser = argparse.ArgumentParser(description="Train the paper's model.")
    for option in (*SIZES_AND_DROPOUTS, NHIDLAST, *TRAINING, *OF_A_STAGE):
        _add(parser, option, option.default)
    parser.add_argument("--data", default="./penn/", help="the folder of the text")
    parser.add_argument("--save", default="EXP", help="name of the run folder; date and time are added to it")
    parser.add_argument("--tied", action="store_false", help="do NOT tie the output to the input embedding")
    _add_common(parser)
    return parser


def finetune_parser() -> argparse.ArgumentParser:
    """The options of finetune.py. Those that training has too are the run's own unless they are given."""
    parser = argparse.ArgumentParser(description="Fine-tune what main.py trained.")
    for option in (*SIZES_AND_DROPOUTS, *FINETUNING):
        _add(parser, option, argparse.SUPPRESS)
    for option in OF_A_STAGE:
        _add(parser, option, option.default)
    parser.add_argument("--data", help="the folder of the text (default: that of the run)")
    parser.add_argument("--save", required=True, help="the run folder that main.py made")
    parser.add_argument("--tied", action="store_false", default=argparse.SUPPRESS, help="no effect: the run's own")
    _add_common(parser)
    return parser


def dynamic_parser() -> argparse.ArgumentParser:
    """The options of dynamiceval.py."""
    parser = argparse.ArgumentParser(description="Dynamic evaluation of a run.")
    parser.add_argument("--model", required=True, help="FOLDER/finetune_model.pt, FOLDER/model.pt or FOLDER")
    parser.add_argument("--data", help="the folder of the text (default: that of the run)")
    for option in DYNAMIC:
        _add(parser, option, option.default)
    parser.add_argument("--gpu", type=int, default=0, help="number of the GPU; -1: CPU")
    parser.add_argument("--val", action="store_true", help="the validation text instead of the test text")
    parser.add_argument("--ms", action="store_true", help="mean instead of sum of squared gradients")
    parser.add_argument(
        "--max_batches", type=int, default=-1, help="segments for the gradient statistics at most; -1: all"
    )
    return parser


def generate_parser() -> argparse.ArgumentParser:
    """The options of generate.py."""
    parser = argparse.ArgumentParser(description="Generate text with a run.")
    parser.add_argument("--data", default="./penn", help="no effect: the run has its vocabulary")
    parser.add_argument(
        "--checkpoint", default="./model.pt", help="FOLDER/finetune_model.pt, FOLDER/model.pt or FOLDER"
    )
    parser.add_argument("--outf", default="generated.txt", help="the file to write (default: %(default)s)")
    parser.add_argument("--words", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1111, help="the same seed gives the same text")
    parser.add_argument("--cuda", action="store_true", help="use a GPU")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the mixture")
    parser.add_argument("--log-interval", type=int, default=100, help="no effect")
    return parser


def training_config(arguments: argparse.Namespace) -> Config:
    """The configuration that a command line of main.py asks for."""
    given = dict(vars(arguments))
    if given["nhidlast"] < 0:
        given["nhidlast"] = given["emsize"]
    options = (*SIZES_AND_DROPOUTS, NHIDLAST, *TRAINING, *OF_A_STAGE)
    values = _values(options, _resolved(given, given["batch_size"]), "train")
    values["model"]["tied"] = arguments.tied
    # The folder as it was named: where a link leads to is not the text's name.
    values["data"] = {"corpus": Path(os.path.abspath(arguments.data)).name}
    return _config(values, options, "train")


def finetune_config(run: Config, arguments: argparse.Namespace) -> tuple[Config, list[str]]:
    """The run's configuration with what a command line of finetune.py changes, and notices about that.

    As in the original the model keeps the sizes and dropouts that it was trained with. ``--lr``, ``--epochs`` and
    ``--nonmono`` are fine-tuning's own; of the other options those that are given replace the run's.
    """
    given = dict(vars(arguments))
    if given.get("batch_size", run.train.batch) != run.train.batch:
        given.setdefault("small_batch_size", -1)
    given = _resolved(given, given.get("batch_size", run.train.batch))
    values: dict[str, dict[str, Any]] = msgspec.to_builtins(run)
    notices = [
        f"--{option.name} {given[option.name]:g} has no effect, as in the original: the model has "
        f"{option.setting} = {_of(values, option.setting):g}"
        for option in SIZES_AND_DROPOUTS
        if option.name in given and given[option.name] != _of(values, option.setting)
    ]
    options = (*TRAINING, *OF_A_STAGE)
    asked = _values(options, given, "finetune")
    notices += [
        f"fine-tuning with {key} = {value:g} (training had {values['train'][key]:g})"
        for key, value in asked.get("train", {}).items()
        if value != values["train"][key]
    ]
    for section, settings in asked.items():
        values[section].update(settings)
    return _config(values, options, "finetune"), notices


def dynamic_config(run: Config, arguments: argparse.Namespace) -> Config:
    """The run's configuration with the dynamic evaluation that a command line of dynamiceval.py asks for."""
    values: dict[str, dict[str, Any]] = msgspec.to_builtins(run)
    values.update(_values(DYNAMIC, vars(arguments)))
    values["dynamic"]["mean_square"] = arguments.ms
    return _config(values, DYNAMIC)


def find_model(model: str) -> tuple[RunFolder, str | None]:
    """The run and the stage that a path like FOLDER/finetune_model.pt stands for; a bare FOLDER is its last stage.

    The files were the original's: here the name chooses the stage, and the file need not exist.
    """
    path = Path(model)
    if path.is_dir():
        return RunFolder.open(path), None
    if (path.parent / "config.toml").is_file():
        if path.name not in STAGE_OF_FILE:
            raise UserError(f"{model}: expected FOLDER, FOLDER/model.pt or FOLDER/finetune_model.pt", exit_code=2)
        return RunFolder.open(path.parent), STAGE_OF_FILE[path.name]
    if path.is_file():
        raise UserError(
            f"{model}: a file of the original code has to be imported first: with that code save its tensors "
            "(torch.save(model.state_dict(), 'state.pt')), run `highrank import state.pt --out FOLDER`, then give "
            "--model FOLDER"
        )
    raise UserError(f"{path.parent}: not a run folder; main.py makes one, the name in --save with date and time added")


def check_data(data: str) -> str:
    if not Path(data).is_dir():
        raise UserError(
            f"--data {data}: no such folder; get_data.sh puts the corpora into data/penn and data/wikitext-2"
        )
    return data


def training_device(arguments: argparse.Namespace) -> argparse.Namespace:
    """What ``highrank.cli.stage.machine`` asks for; refuses what is not there, and says what is not used."""
    if arguments.model != "LSTM":
        raise UserError(f"--model {arguments.model}: only LSTM, the paper's model, is supported", exit_code=2)
    return argparse.Namespace(device="auto" if arguments.cuda else "cpu", after_loss=AFTER_LOSS)


def gpus(arguments: argparse.Namespace) -> int:
    """How many GPUs a command line asks for: all that are visible, but for --single_gpu."""
    return max(1, torch.cuda.device_count()) if arguments.cuda and not arguments.single_gpu else 1


def shared(config: Config, gpus: int) -> Config:
    """The configuration with micro-batches for so many GPUs to share: the original cut each batch among them too."""
    batch, widest = config.train.batch, config.micro_batch
    # The columns that the busiest GPU has to walk; of equal ones the widest micro-batch, for it has the fewest passes.
    micro = min(
        (columns for columns in range(widest, 0, -1) if widest % columns == 0),
        key=lambda columns: math.ceil(batch / columns / gpus) * columns,
    )
    if micro == widest:
        return config
    return msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, micro_batch=micro))


def workers_for(config: Config, gpus: int) -> int:
    """How many of so many GPUs have a micro-batch to work on."""
    return min(gpus, config.train.batch // config.micro_batch)


def print_perplexities(run: RunFolder, corpus: Corpus, stage: str, where: Machine) -> None:
    """Of the best model of a stage: exact, and as the original counted."""
    for split in ("valid", "test"):
        exact, paper = (
            evaluate_run(
                run,
                corpus,
                split,
                stage=stage,
                paper=paper,
                device=where.device,
                display=where.display,
                workers=where.workers,
            )
            for paper in (False, True)
        )
        if not where.workers.is_first:
            continue
        print(
            f"{stage}, {split}: perplexity {exact['perplexity']:.2f} over every predicted token; "
            f"{paper['perplexity']:.2f} as the original counts (batch {paper['batch']}, a little low)"
        )


def run_script(main: Callable[[], int]) -> NoReturn:
    try:
        check_launcher()
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    try:
        sys.exit(leave(main()))
    except UserError as error:
        report(error, program=Path(sys.argv[0]).name)
        sys.exit(leave(error.exit_code))
    except OSError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _add(parser: argparse.ArgumentParser, option: Option, default: Any) -> None:
    text = option.help if default is argparse.SUPPRESS else f"{option.help} (default: %(default)s)"
    parser.add_argument(f"--{option.name}", type=type(option.default), default=default, help=text)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="LSTM", help="only LSTM")
    parser.add_argument("--cuda", action="store_false", help="do NOT use a GPU")
    parser.add_argument("--single_gpu", action="store_true", help="one GPU, though others are visible")
    parser.add_argument("--continue_train", action="store_true", help="go on with the run folder in --save")
    parser.add_argument("--log-interval", type=int, default=200, help="no effect")


def _resolved(given: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """With what negative numbers stand for; an option that stands for one that is not given is left out."""
    resolved = dict(given)
    if resolved.get("dropoutl", 0) < 0:
        del resolved["dropoutl"]
        if "dropouth" in given:
            resolved["dropoutl"] = given["dropouth"]
    small = resolved.get("small_batch_size", 0)
    if small < 0 or small == batch:
        resolved["small_batch_size"] = 0  # all columns at once
    return resolved


def _values(options: tuple[Option, ...], given: Mapping[str, Any], stage: str = "") -> dict[str, dict[str, Any]]:
    """The options that are given as sections of the configuration."""
    values: dict[str, dict[str, Any]] = {}
    for option in options:
        if option.name in given:
            section, key = option.setting.format(stage).split(".")
            values.setdefault(section, {})[key] = given[option.name]
    return values


def _config(values: Mapping[str, Any], options: tuple[Option, ...], stage: str = "") -> Config:
    """Raises UserError that names the options instead of the settings that they stand for."""
    source = "options"
    try:
        return parse_config(values, source=source)
    except UserError as error:
        said = str(error).removeprefix(f"{source}: ")
        for setting, name in [("data.corpus", "data"), *((each.setting.format(stage), each.name) for each in options)]:
            said = re.sub(rf"\b{re.escape(setting)}\b", f"--{name}", said)
        raise UserError(said, exit_code=error.exit_code) from error


def _of(values: Mapping[str, Mapping[str, Any]], setting: str) -> Any:
    section, key = setting.split(".")
    return values[section][key]
