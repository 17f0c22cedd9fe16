"""The paper's finetune.py: fine-tunes the run folder that --save names. The same as ``highrank finetune``.

The learning rate, epochs and nonmono of the command line are written into the run's configuration. The model keeps its
sizes and dropouts, as in the original. Everything else is as the run was trained, unless it is given and differs:
then it holds for this stage, and a notice says so.
"""

from dataclasses import replace
from pathlib import Path

import msgspec.structs
from options import finetune_config, finetune_parser, print_perplexities, run_script, training_device

from highrank.cli.output import notice
from highrank.cli.stage import interruptible, machine
from highrank.files import write_text
from highrank.runs import RunFolder, to_toml
from highrank.train import corpus_of, finetune


def main() -> int:
    arguments = finetune_parser().parse_args()
    device = training_device(arguments)
    run = RunFolder.open(Path(arguments.save))
    config, notices = finetune_config(run.config, arguments)
    for text in notices:
        notice(f"finetune.py: {text}")
    corpus = corpus_of(run, arguments.data)
    if arguments.continue_train or not run.stage_folder("finetune").exists():
        write_text(run.path / "config.toml", to_toml(msgspec.structs.replace(run.config, finetune=config.finetune)))
    with machine(device) as where, interruptible() as ending:
        finetune(replace(run, config=config), corpus, where, resume=arguments.continue_train)
        print_perplexities(run, corpus, "finetune", where)
    if ending.exit_code:
        print(f"go on with --continue_train --save {run.path}")
    return ending.exit_code


if __name__ == "__main__":
    run_script(main)
