"""The paper's main.py: trains a model into the folder NAME-YYYYMMDD-HHMMSS, NAME being what --save says.

With --continue_train --save FOLDER the run in FOLDER goes on where it stopped. The same as ``highrank train``.
"""

import time
from pathlib import Path

from msgspec.structs import replace
from options import check_data, print_perplexities, run_script, training_config, training_device, training_parser

from highrank.cli.stage import interruptible, machine
from highrank.runs import RunFolder
from highrank.train import corpus_for, open_or_create, train


def main() -> int:
    arguments = training_parser().parse_args()
    device = training_device(arguments)
    config = training_config(arguments)
    if arguments.continue_train:
        folder = Path(arguments.save)
        begun = RunFolder.open(folder).config
        # What later stages were given is theirs, and no difference in how this run is trained.
        config = replace(config, finetune=begun.finetune, dynamic=begun.dynamic)
    else:
        folder = Path(f"{arguments.save}-{time.strftime('%Y%m%d-%H%M%S')}")
    corpus = corpus_for(config, check_data(arguments.data))
    with machine(device) as where, interruptible() as ending:
        run = open_or_create(folder, config, corpus, resume=arguments.continue_train)
        print(f"run folder: {folder}", flush=True)
        train(run, corpus, where, resume=arguments.continue_train)
        print_perplexities(run, corpus, "train", where)
    if ending.exit_code:
        print(f"run folder: {folder} (go on with --continue_train --save {folder})")
    return ending.exit_code


if __name__ == "__main__":
    run_script(main)
