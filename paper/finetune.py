"""The paper's finetune.py: fine-tunes the run folder that --save names. The same as ``highrank finetune``.

The learning rate, epochs and nonmono of the command line are written into the run's configuration. The model keeps its
sizes and dropouts, as in the original. Everything else is as the run was trained, unless it is given and differs:
then it holds for this stage, and a notice says so.
"""

from pathlib import Path

from msgspec.structs import replace
from options import StageRun, finetune_config, finetune_parser, print_perplexities, run_script, training_device

from highrank.cli.output import notice
from highrank.cli.stage import interruptible, machine
from highrank.files import explained, write_text
from highrank.runs import RunFolder, at_work, to_toml
from highrank.train import corpus_of, finetune


def main() -> int:
    arguments = finetune_parser().parse_args()
    device = training_device(arguments)
    run = RunFolder.open(Path(arguments.save))
    config, notices = finetune_config(run.config, arguments)
    for text in notices:
        notice(f"finetune.py: {text}")
    corpus = corpus_of(run, arguments.data)
    with machine(device) as where, interruptible() as ending, at_work(run.path):
        if arguments.continue_train or not run.stage_folder("finetune").exists():
            with explained(run.path):
                write_text(run.path / "config.toml", to_toml(replace(run.config, finetune=config.finetune)))
        finetune(StageRun(run.path, config), corpus, where, resume=arguments.continue_train)
        print_perplexities(run, corpus, "finetune", where)
    if ending.exit_code:
        print(f"go on with --continue_train --save {run.path}")
    return ending.exit_code


if __name__ == "__main__":
    run_script(main)
