"""The options of the 2017 code beside what they are here, from the tables of ``paper/options.py``."""

import argparse
from collections.abc import Iterable, Sequence

from docs.generate.markdown import table

__all__ = ["option_tables"]

# What is no setting of the model or the training, but a matter of the command.
BY_HAND = {
    "data": "`--data DIR`, or the recipe's `data.corpus`",
    "save": "`--out RUN`",
    "tied": "`model.tied = false`; its flag switched tying off, and there it still does",
    "cuda": "`--device cpu`; its flag switched the GPU off, and there it still does",
    "model": "one model: the AWD-LSTM with the head of `model.head`",
    "single_gpu": "`--workers 1`, the default",
    "continue_train": "`--resume`, which goes on to the same bits, and beyond the end with more `train.epochs`; not on "
    "another text, or from an imported model",
    "log-interval": "none: a line every few seconds, means of 50 updates and each validation in `metrics.jsonl`",
}
FINETUNE = BY_HAND | {
    "data": "none: the run knows its text; `--data DIR` where it has moved",
    "save": "the argument `RUN`: the run folder",
    "continue_train": "`--resume`, as above",
}
DYNAMIC = {
    "model": "the argument `RUN`; `--stage train` for the model before fine-tuning",
    "data": "none: the run knows its text; `--data DIR` where it has moved",
    "gpu": "`--device cuda:0`, or `--device cpu` for -1",
    "val": "`--split valid`",
    "ms": "`--ms`, or `dynamic.mean_square = true`",
    "max_batches": "none: the statistics are those of the whole training text",
}
GENERATE = {
    "data": "none: the run has its vocabulary",
    "checkpoint": "the argument `RUN`; `--stage train` for the model before fine-tuning",
    "outf": "none: the text goes to standard output",
    "words": "`--words`",
    "seed": "`--seed`",
    "cuda": "`--device cuda`; here the flag did switch the GPU on",
    "temperature": "`--temperature`, of the mixture",
    "log-interval": "none",
}
# Beside a setting of the recipe, an option of the command.
ALSO = {"dynamic.lamb": "--lamb", "dynamic.epsilon": "--epsilon", "dynamic.lr": "--lr", "dynamic.bptt": "--bptt"}


def option_tables() -> str:
    from paper import options

    stages = (*options.OF_A_STAGE,)
    training = (*options.SIZES_AND_DROPOUTS, options.NHIDLAST, *options.TRAINING, *stages)
    finetuning = (*options.SIZES_AND_DROPOUTS, *options.FINETUNING, *stages)
    return "\n".join(
        [
            "### main.py\n",
            _table(options.training_parser(), training, BY_HAND, "train"),
            "### finetune.py\n",
            "The sizes and dropouts are those of the trained model, as they were then: given here they change nothing, "
            "and a line says so. Any other option that is given replaces the run's own setting. Where it is not given, "
            "the default in this table counted in 2017; here the run's own setting does, except for `--lr`, `--epochs` "
            "and `--nonmono`, which keep that default.\n",
            _table(options.finetune_parser(), finetuning, FINETUNE, "finetune"),
            "### dynamiceval.py\n",
            _table(options.dynamic_parser(), options.DYNAMIC, DYNAMIC, "dynamic"),
            "### generate.py\n",
            _table(options.generate_parser(), (), GENERATE, "generate"),
        ]
    )


def _table(parser: argparse.ArgumentParser, known: Sequence, by_hand: dict[str, str], stage: str) -> str:
    settings = {option.name: option.setting.format(stage) for option in known}
    rows = []
    for name in _names(parser):
        assert (name in settings) != (name in by_hand), f"--{name} of {stage}: one meaning is wanted"
        meaning = by_hand.get(name) or _setting(settings[name])
        rows.append([f"`--{name}`", _default(parser, name, known), meaning])
    return table(["2017", "default then", "here"], rows)


def _setting(setting: str) -> str:
    return f"`{setting}`" + (f", or `{ALSO[setting]}`" if setting in ALSO else "")


def _names(parser: argparse.ArgumentParser) -> Iterable[str]:
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            yield action.option_strings[-1].removeprefix("--")


def _default(parser: argparse.ArgumentParser, name: str, known: Sequence) -> str:
    for option in known:
        if option.name == name:
            return f"`{option.default}`"
    for action in parser._actions:
        if f"--{name}" in action.option_strings and action.nargs != 0:
            return "" if action.default in (None, argparse.SUPPRESS) else f"`{action.default}`"
    return ""
