"""How long does a training step of a trained mixture take with the posterior filter, beside the textbook? Takes a run.

All train on from the run's weights: what the filter saves depends on the posteriors that training has made.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from benchmarks.bench_posterior_filter import describe, posteriors
from benchmarks.bench_train_step import TEXTBOOK_EPSILON, our_step, textbook_step
from benchmarks.harness import Worker, environments, in_turn, save, summary
from benchmarks.textbook import textbook_model
from highrank.data import find_corpus, load_corpus
from highrank.data.batches import Columns
from highrank.evaluate import evaluate
from highrank.runs import RunFolder, build_model, parse_config
from highrank.runs.original import to_original
from highrank.runs.tensors import model_tensors

DENSE, FILTERED = "train.min_posterior=0", "train.min_posterior=0.001"
EXACT, ROUNDED = "train.precision=float32", "train.precision=bfloat16"
# By name, with what each changes in the run's settings.
OURS = {
    "highrank": (EXACT, DENSE),
    "highrank, filtered": (EXACT, FILTERED),
    "highrank, bfloat16": (ROUNDED, DENSE),
    "highrank, bfloat16, filtered": (ROUNDED, FILTERED),
}
TEXTBOOK = "textbook"


def make_step(candidate: str, path: Path, data: str | None) -> Callable[[], float]:
    """Training steps of one of OURS or of the TEXTBOOK from the weights of the run; each returns its loss."""
    run = RunFolder.open(path)
    changes = OURS.get(candidate, ())
    # The model is one that was loaded, which has no past decoder.
    plain = ("train.past_decode=0", *changes)
    config = parse_config(msgspec.to_builtins(run.config), source=str(path), overrides=plain)
    corpus = load_corpus(find_corpus(config.data.corpus, data))
    columns = Columns(corpus.tokens["train"], config.train.batch)
    torch.manual_seed(config.train.seed)
    trained, words = run.load_model("train"), len(corpus.vocabulary)
    if candidate == TEXTBOOK:
        textbook = textbook_model(config, words, epsilon=TEXTBOOK_EPSILON)
        textbook.load_state_dict(to_original(model_tensors(trained)))
        step = textbook_step(textbook, config, columns)
    else:
        model = build_model(config, words)
        model.load_state_dict(trained.state_dict())
        step = our_step(model, config, columns)
    return lambda: step().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a trained mixture of softmaxes")
    parser.add_argument("--data", help="the folder of the corpus")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--heldout-tokens", type=int, default=10_000, help="of the posteriors (default: %(default)s)")
    arguments = parser.parse_args()
    run = RunFolder.open(arguments.run)
    validations = [r for r in run.metrics() if (r["stage"], r["event"]) == ("train", "validation")]
    if not validations:
        parser.error(f"{arguments.run}: a run with validations in its metrics was expected, it has none")
    best = min(validations, key=lambda record: record["loss_nats"])
    corpus = load_corpus(find_corpus(run.config.data.corpus, arguments.data))
    model = run.load_model("train")
    valid = corpus.tokens["valid"][: arguments.heldout_tokens + 1]
    heldout = describe(torch.cat(list(posteriors(model, corpus, "valid", arguments.heldout_tokens))))
    valid_loss_nats = evaluate(model, valid).loss_nats

    as_it_comes, alone = environments()
    workers = {
        name: Worker(
            partial(make_step, name, arguments.run, arguments.data), as_it_comes if name == TEXTBOOK else alone
        )
        for name in (*OURS, TEXTBOOK)
    }
    times = {name: summary(seconds) for name, seconds in in_turn(workers, arguments.repeats, warm_up=2).items()}
    peaks = {name: worker.close() for name, worker in workers.items()}
    result = {
        "recipe": run.config.data.corpus,
        "model": {name: getattr(run.config.model, name) for name in run.config.model.__struct_fields__},
        "trained_with": msgspec.to_builtins(run.config.train),
        "updates_before": best["step"],
        "valid_loss_nats_before": valid_loss_nats,
        "posteriors": heldout,
        "filter": FILTERED,
        "repeats": arguments.repeats,
        "environment": alone,
        "step": times,
        "peak_bytes": peaks,
        "times_faster": {name: times[TEXTBOOK]["median_s"] / times[name]["median_s"] for name in OURS},
    }
    for name, seconds in times.items():
        print(f"{name:30} {1e3 * seconds['median_s']:,.0f} ms a step, peak {peaks[name] / 2**20:,.0f} MiB")
    for name, faster in result["times_faster"].items():
        print(f"{name}: {faster:.2f} times faster than the {TEXTBOOK}")
    print(f"-> {save(f'{Path(__file__).stem}.{run.config.data.corpus}', result)}")


if __name__ == "__main__":
    main()
