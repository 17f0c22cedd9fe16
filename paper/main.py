"""The paper's main.py: trains a model into the folder NAME-YYYYMMDD-HHMMSS, NAME being what --save says.

With --continue_train --save FOLDER the run in FOLDER goes on where it stopped. Without --single_gpu all visible GPUs
share the work, a process each. The same as ``highrank train``.
"""

import argparse
import sys
import time
from pathlib import Path

from msgspec.structs import replace
from options import (
    check_data,
    gpus,
    print_perplexities,
    run_script,
    shared,
    training_config,
    training_device,
    training_parser,
    workers_for,
)

from highrank.cli.launch import launch, launched
from highrank.cli.stage import interruptible, machine
from highrank.data import Corpus
from highrank.runs import Config, RunFolder
from highrank.train import Machine, corpus_for, open_or_create, train


def main() -> int:
    arguments = training_parser().parse_args()
    device = training_device(arguments)
    config = training_config(arguments)
    if arguments.continue_train:
        begun = RunFolder.open(Path(arguments.save)).config
        # What later stages were given is theirs, and no difference in how this run is trained; nor are other GPUs.
        train_section = replace(config.train, micro_batch=begun.train.micro_batch)
        config = replace(config, train=train_section, finetune=begun.finetune, dynamic=begun.dynamic)
    else:
        config = shared(config, gpus(arguments))
    workers = workers_for(config, gpus(arguments))
    if workers > 1 and not launched():
        return launch(sys.argv, workers, after_loss=device.after_loss)
    with machine(device) as where, interruptible(where) as ending:
        corpus = corpus_for(config, check_data(arguments.data), display=where.display)
        run = where.workers.first(lambda: open_run(arguments, config, corpus, where))
        train(run, corpus, where, resume=arguments.continue_train)
        print_perplexities(run, corpus, "train", where)
    if ending.exit_code and where.workers.is_first:
        print(f"run folder: {run.path} (go on with --continue_train --save {run.path})")
    return ending.exit_code


def open_run(arguments: argparse.Namespace, config: Config, corpus: Corpus, where: Machine) -> RunFolder:
    name = arguments.save if arguments.continue_train else f"{arguments.save}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = open_or_create(
        Path(name),
        config,
        corpus,
        resume=arguments.continue_train,
        workers=where.workers.count,
        notice=where.display.message,
    )
    print(f"run folder: {run.path}", flush=True)
    return run


if __name__ == "__main__":
    run_script(main)
