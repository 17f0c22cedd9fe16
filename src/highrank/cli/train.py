"""``highrank train RECIPE``"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_recipe_options,
    add_training_options,
    add_workers_options,
)
from highrank.cli.output import add_json_option, print_result
from highrank.duration import duration
from highrank.errors import UserError

if TYPE_CHECKING:
    from highrank.data import Corpus
    from highrank.progress import Display
    from highrank.runs import Config
    from highrank.train import Machine

__all__ = ["add_parser", "best_lines", "read_recipe", "run", "text_for", "warn_of_averaging"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("train", help="train a model by a recipe", description="Train a model by a recipe.")
    add_recipe_options(parser)
    add_data_option(parser)
    add_training_options(parser)
    add_device_option(parser)
    add_workers_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and what it will cost; write nothing"
    )
    parser.add_argument(
        "--time", action="store_true", help="with --dry-run: make some updates, to tell how long they take here"
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    config, out = read_recipe(arguments)
    if arguments.dry_run:
        return _dry_run(config, arguments)
    if arguments.time:
        raise UserError("--time: goes with --dry-run; training tells its own time", exit_code=2)

    from highrank.cli.stage import interruptible, machine
    from highrank.train import open_or_create, train

    with machine(arguments) as where:
        corpus = text_for(config, out, arguments, where)
        run_folder = where.workers.first(
            lambda: open_or_create(
                out,
                config,
                corpus,
                resume=arguments.resume,
                workers=where.workers.count,
                device=where.device,
                overrides=arguments.overrides,
                notice=where.display.message,
            )
        )
        where.display.message(f"run folder: {out}")
        warn_of_averaging(config, where.display)
        with interruptible(where) as ending:
            figures = train(run_folder, corpus, where, resume=arguments.resume)
    if ending.exit_code or not where.workers.is_first:
        return ending.exit_code
    print_result({"run": str(out), "stage": "train"} | figures, best_lines("trained", figures), as_json=arguments.json)
    return 0


def read_recipe(arguments: argparse.Namespace) -> tuple["Config", Path]:
    """The configuration and the run folder that the command line asks for."""
    from highrank.runs import find_recipe, read_config

    path = find_recipe(arguments.recipe)
    return read_config(path, overrides=arguments.overrides), arguments.out or Path("runs") / path.stem


def warn_of_averaging(config: "Config", display: "Display") -> None:
    """Fewer epochs than the recipe's may end before the one from which it averages: that costs many points."""
    train = config.train
    if train.average_from > train.epochs:
        display.message(
            f"train.average_from={train.average_from}: weights are not averaged before training ends, with epoch "
            f"{train.epochs}, unless validation stalls; --set train.average_from={train.epochs} averages the last epoch"
        )


def text_for(config: "Config", out: Path, arguments: argparse.Namespace, where: "Machine") -> "Corpus":
    """The text to train on: with ``--resume``, where ``--data`` says nothing, that of the run, which the first worker
    has."""
    from highrank.files import is_free
    from highrank.runs import RunFolder
    from highrank.train import corpus_for, corpus_of

    if arguments.resume and arguments.data is None:
        run = where.workers.first(lambda: None if is_free(out) else RunFolder.open(out))
        if run is not None:
            return corpus_of(run, None, display=where.display)
    return corpus_for(config, arguments.data, display=where.display)


def best_lines(what: str, figures: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{what}: best valid perplexity {figures['valid_perplexity']:.2f} in epoch {figures['best_epoch']} of "
        f"{figures['epochs']}, {figures['updates']} updates, {figures['elapsed_s']:.0f} s"
    )


def _dry_run(config: "Config", arguments: argparse.Namespace) -> int:
    import msgspec

    from highrank.cli.display import ConsoleDisplay
    from highrank.runs import choose_device, describe_device, estimate, to_toml
    from highrank.train import check_can_train, corpus_for, time_updates

    device = choose_device(arguments.device)
    with ConsoleDisplay() as display:
        corpus: Corpus = corpus_for(config, arguments.data, display=display)
        check_can_train(config, corpus, arguments.workers, device)
        warn_of_averaging(config, display)
        cost = estimate(config, corpus)
        if arguments.time:
            cost |= {
                "update_s": time_updates(config, corpus, device, display=display),
                "device": describe_device(device),
            }
    memory = cost["memory_bytes"]
    lines = [
        to_toml(config).rstrip(),
        "",
        f"parameters          {cost['parameters']:,}",
        f"vocabulary          {cost['vocabulary']:,}",
        f"updates per epoch   about {cost['updates_per_epoch']:,}",
        f"memory              about {memory['total'] / 2**20:,.0f} MiB "
        f"({memory['weights_averages_sums'] / 2**20:,.0f} weights, averages and sums of gradients; "
        f"{memory['optimizer'] / 2**20:,.0f} the optimizer; {memory['longest_step'] / 2**20:,.0f} the longest step), "
        "on a CPU, beside Python and PyTorch",
    ]
    if arguments.time:
        steps = len(corpus.tokens["train"]) / config.train.batch
        epoch_s, epochs = cost["update_s"] * steps / config.train.bptt, config.train.epochs
        lines += [
            f"time                {cost['update_s']:.3g} s an update, about {duration(epoch_s)} an epoch and "
            f"{duration(epochs * epoch_s)} for {epochs:,} epochs, without validations; one worker, {cost['device']}"
        ]
    print_result({"configuration": msgspec.to_builtins(config)} | cost, lines, as_json=arguments.json)
    return 0
