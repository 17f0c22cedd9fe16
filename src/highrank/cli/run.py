"""``highrank run RECIPE``: train, fine-tune, evaluate dynamically, show a sample and a table."""

import argparse
import shlex
from contextlib import ExitStack

from highrank.cli.options import (
    add_data_option,
    add_device_option,
    add_recipe_options,
    add_training_options,
    add_workers_options,
)
from highrank.cli.output import add_json_option, print_result
from highrank.cli.train import read_recipe, text_for, warn_of_averaging

__all__ = ["add_parser", "run"]

SAMPLE_WORDS = 60


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "run",
        help="the whole recipe: train, fine-tune, dynamic evaluation, table",
        description="Train, fine-tune, evaluate each stage and dynamically, print a sample and a table.",
    )
    add_recipe_options(parser)
    add_data_option(parser)
    add_training_options(parser)
    add_device_option(parser)
    add_workers_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from highrank.cli.stage import interruptible, machine
    from highrank.evaluate import (
        dynamic_evaluate_run,
        dynamic_settings,
        evaluate_run,
        generate_text,
        has_dynamic_result,
        prepare_statistics,
    )
    from highrank.report import summary_lines, summary_rows
    from highrank.runs import STAGES, at_work, load
    from highrank.train import finetune, open_or_create, train

    config, out = read_recipe(arguments)
    with machine(arguments) as where, interruptible(where) as ending, ExitStack() as held:
        workers = where.workers
        corpus = text_for(config, out, arguments, where)
        folder = workers.first(
            lambda: open_or_create(
                out,
                config,
                corpus,
                resume=arguments.resume,
                workers=workers.count,
                device=where.device,
                overrides=arguments.overrides,
                stages=STAGES,
                notice=where.display.message,
            )
        )
        held.enter_context(at_work(out, workers))  # over all stages and what lies between them
        where.display.message(f"run folder: {out}")
        warn_of_averaging(config, where.display)
        # Each step knows whether it is done, so that a resumed run goes on where it stopped.
        for stage, step in (("train", train), ("finetune", finetune)):
            step(folder, corpus, where, resume=arguments.resume)
            for split in ("valid", "test"):
                if split not in workers.first(lambda: folder.results)[stage]:
                    result = evaluate_run(
                        folder,
                        corpus,
                        split,
                        stage=stage,
                        device=where.device,
                        display=where.display,
                        workers=workers,
                    )
                    where.display.message(f"{stage}: {split} perplexity {result['perplexity']:.2f}")
        settings = dynamic_settings(folder)
        prepare_statistics(folder, corpus, settings, device=where.device, display=where.display, workers=workers)
        if not workers.is_first:
            return 0  # the walk over the text, and all that follows, is one worker's
        last = folder.last_stage()
        splits = [split for split in ("valid", "test") if not has_dynamic_result(folder, last, settings, split)]
        if splits:
            dynamic_evaluate_run(folder, corpus, splits, settings, device=where.device, display=where.display)
    if ending.exit_code:
        return ending.exit_code
    model, vocabulary = load(out, device=where.device)
    sample = generate_text(model, vocabulary, "", SAMPLE_WORDS, seed=config.train.seed, allow_unknown=False)
    result = {"run": str(out), "stages": summary_rows(folder), "sample": sample}
    lines = ["", "a sample of the fine-tuned model:", "", sample.rstrip(), "", *summary_lines(folder)]
    lines += ["", f"as a page, with its training, components and a passage: highrank report {shlex.quote(str(out))}"]
    print_result(result, lines, as_json=arguments.json)
    return 0
