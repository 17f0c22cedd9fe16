"""The paper's dynamiceval.py: dynamic evaluation of a run. The same as ``highrank dynamic-eval``.

--model FOLDER/finetune_model.pt or FOLDER/model.pt chooses the stage; the text is the run's own unless --data says so.
"""

import argparse
from dataclasses import replace
from typing import Any

import torch
from options import dynamic_config, dynamic_parser, find_model, run_script

from highrank.cli.stage import machine
from highrank.data import Corpus
from highrank.data.batches import Columns
from highrank.evaluate import dynamic_evaluate, dynamic_evaluate_run, dynamic_settings, gradient_statistics
from highrank.runs import RunFolder
from highrank.train import Machine, corpus_of


def main() -> int:
    arguments = dynamic_parser().parse_args()
    found, stage = find_model(arguments.model)
    corpus = corpus_of(found, arguments.data)
    run = replace(found, config=dynamic_config(found.config, arguments))
    split = "valid" if arguments.val else "test"
    device = f"cuda:{arguments.gpu}" if arguments.gpu >= 0 and torch.cuda.is_available() else "cpu"
    with machine(argparse.Namespace(device=device)) as where:
        if arguments.max_batches > 0:
            figures = with_few_segments(run, corpus, split, stage, arguments.max_batches, where)
        else:
            settings = dynamic_settings(run)
            figures = dynamic_evaluate_run(
                run, corpus, (split,), settings, stage=stage, device=where.device, display=where.display
            )[split]
    print(
        f"dynamic evaluation of {stage or run.last_stage()}, {split}: perplexity {figures['perplexity']:.2f}, "
        f"{figures['loss_nats']:.4f} nats over {figures['tokens']:,} tokens"
    )
    return 0


def with_few_segments(
    run: RunFolder, corpus: Corpus, split: str, stage: str | None, segments: int, where: Machine
) -> dict[str, Any]:
    """The same with gradient statistics of the first ``segments`` segments of every column; not recorded."""
    model, settings = run.load_model(stage, device=where.device), dynamic_settings(run)
    batch = run.config.dynamic.batch
    columns = Columns(corpus.tokens["train"], batch, what="train.txt")
    # The heads of the columns, one after the other, are a text that is cut into just these columns.
    heads = columns.segment(0, segments * settings.bptt)
    part = torch.cat([heads.tokens, heads.target[-1:]]).T.flatten().int().numpy()
    statistics = gradient_statistics(model, part, batch=batch, bptt=settings.bptt, display=where.display)
    return dynamic_evaluate(model, corpus.tokens[split], statistics, settings, display=where.display)._asdict()


if __name__ == "__main__":
    run_script(main)
