"""The paper's finetune.py: fine-tunes the run folder that --save names. The same as ``highrank finetune``.

The learning rate, epochs and nonmono of the command line are written into the run's configuration. The model keeps its
sizes and dropouts, as in the original. Everything else is as the run was trained, unless it is given and differs:
then it holds for this stage, and a notice says so.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
from options import (
    finetune_config,
    finetune_parser,
    gpus,
    print_perplexities,
    run_script,
    training_device,
    workers_for,
)

from highrank.cli.launch import launch, launched
from highrank.cli.output import notice
from highrank.cli.stage import interruptible, machine
from highrank.data import Corpus
from highrank.runs import Config, RunFolder, at_work
from highrank.train import Machine, corpus_of, finetune, set_later_settings


def main() -> int:
    arguments = finetune_parser().parse_args()
    device = training_device(arguments)
    config, notices = finetune_config(RunFolder.open(Path(arguments.save)).config, arguments)
    if not launched():
        for text in notices:
            notice(f"finetune.py: {text}")
        if (workers := workers_for(config, gpus(arguments))) > 1:
            return launch(sys.argv, workers, after_loss=device.after_loss)
    with machine(device) as where, interruptible(where) as ending, at_work(Path(arguments.save), where.workers):
        opened = where.workers.first(lambda: RunFolder.open(Path(arguments.save)))
        corpus = corpus_of(replace(opened, config=config), arguments.data, display=where.display)
        run = where.workers.first(lambda: with_settings(opened, config, corpus, arguments, where))
        finetune(run, corpus, where, resume=arguments.continue_train)
        print_perplexities(run, corpus, "finetune", where)
    if ending.exit_code and where.workers.is_first:
        print(f"go on with --continue_train --save {run.path}")
    return ending.exit_code


def with_settings(
    run: RunFolder, config: Config, corpus: Corpus, arguments: argparse.Namespace, where: Machine
) -> RunFolder:
    """The run with the settings of this stage, of which [finetune] is written down in it."""
    own = [f"finetune.{name}={value}" for name, value in msgspec.to_builtins(config.finetune).items()]
    # Not the number of workers: the micro-batches that they share are those of this stage, which ``finetune`` checks.
    run = set_later_settings(
        run, corpus, own, resume=arguments.continue_train, device=where.device, notice=where.display.message
    )
    return replace(run, config=config)


if __name__ == "__main__":
    run_script(main)
