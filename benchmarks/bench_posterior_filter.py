"""What does the posterior filter save on a trained model, and what does it change? Takes run folders."""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import save
from highrank import LossOptions, mixture_statistics
from highrank.data import Corpus, find_corpus, load_corpus
from highrank.data.batches import Columns
from highrank.evaluate import evaluate
from highrank.models import LanguageModel, detached
from highrank.runs import RunFolder, parse_config
from highrank.train import StageState, update

THRESHOLDS = (0.0, 1e-6, 1e-4, 1e-3, 1e-2)
DECADES = range(-9, 0)


@torch.no_grad()
def posteriors(model: LanguageModel, corpus: Corpus, split: str, tokens: int) -> Iterator[Tensor]:
    """(N, K), segment by segment, of the model as it is evaluated."""
    columns = Columns(corpus.tokens[split][: tokens + 1], 1)
    state = model.initial_state(1)
    for part in columns.segments(500):
        output = model.backbone(part.tokens, state)
        state = detached(output.state)
        context, prior_logits = model.head.components(output.hidden)
        found = mixture_statistics(context, prior_logits, model.head.weight, part.target, bias=model.head.bias)
        yield found.posterior.flatten(0, -2)


def describe(posterior_NK: Tensor) -> dict[str, Any]:
    """Their histogram by decade, the share below each decade, and the mean of the largest, second largest, ..."""
    flat = posterior_NK.flatten().double()
    edges = [0.0, *[10.0**decade for decade in DECADES], 1.0]
    counts, _ = np.histogram(flat.numpy(), bins=[*edges[:-1], 1.0 + 1e-6])
    return {
        "tokens": len(posterior_NK),
        "share_below": {f"1e{decade}": float((flat < 10.0**decade).double().mean()) for decade in DECADES},
        "histogram": {"edges": edges, "share": (counts / len(flat)).tolist()},
        "mean_of_sorted": posterior_NK.sort(dim=1, descending=True).values.mean(0).tolist(),
    }


class Trial:
    """The run's trained weights, trained on with one threshold."""

    def __init__(self, run: RunFolder, corpus: Corpus, min_posterior: float) -> None:
        # The model is one that was loaded, which has no past decoder.
        values, plain = msgspec.to_builtins(run.config), ("train.past_decode=0",)
        self.config, self.corpus = parse_config(values, source=str(run.path), overrides=plain), corpus
        self.model = run.load_model("train").train()
        self.model.head.options = LossOptions(min_posterior=min_posterior)
        self.columns = Columns(corpus.tokens["train"], self.config.train.batch)
        self.state = StageState(self.model, self.config)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        train = self.config.train
        began = time.perf_counter()
        done = update(self.state, self.columns, self.config, seed=train.seed, lr=train.lr, length=train.bptt)
        self.losses.append(done.loss_sum.item() / (done.steps * train.batch))
        self.seconds.append(time.perf_counter() - began)
        self.state.position.add_step(done.steps, done.steps * train.batch)

    @property
    def at_end(self) -> bool:
        """Of the text; as in training, without a last segment of one prediction."""
        return self.state.position.start >= self.columns.length - 2

    def result(self, heldout_tokens: int) -> dict[str, float]:
        heldout = self.corpus.tokens["valid"][: heldout_tokens + 1]
        return {
            "median_s": statistics.median(self.seconds),
            "train_loss_nats": statistics.fmean(self.losses),
            "valid_loss_nats": evaluate(self.model, heldout).loss_nats,
        }


def train_on(trials: list[Trial], updates: int | None) -> int:
    """To the end of the text, or so many updates; returns their number. In turn, so that a busy minute hits all."""
    done = 0
    while done != updates and not trials[0].at_end:
        for trial in trials:
            trial.step()
        done += 1
        if done % 500 == 0:
            print(f"  {done} updates", flush=True)
    return done


def measure(
    run: RunFolder, data: str | None, thresholds: list[float], updates: int | None, heldout_tokens: int
) -> dict[str, Any]:
    """``updates`` None: an epoch."""
    config = run.config
    corpus = load_corpus(find_corpus(config.data.corpus, data))
    model = run.load_model("train")
    before = evaluate(model, corpus.tokens["valid"][: heldout_tokens + 1])
    heldout = torch.cat(list(posteriors(model, corpus, "valid", heldout_tokens)))
    found = describe(heldout)
    print(f"\n{run.path.name}: K={config.model.num_components}, valid perplexity {before.perplexity:.1f}")
    for decade, share in found["share_below"].items():
        print(f"  posteriors below {decade:5} {100 * share:5.1f}%")

    trials = {threshold: Trial(run, corpus, threshold) for threshold in thresholds}
    done = train_on(list(trials.values()), updates)
    epoch = trials[0.0].at_end
    results = {str(threshold): trial.result(heldout_tokens) for threshold, trial in trials.items()}
    all_rows = results["0.0"]
    for threshold, result in results.items():
        result["times_faster"] = all_rows["median_s"] / result["median_s"]
        print(
            f"  min_posterior {threshold:7} {1000 * result['median_s']:7.1f} ms a step, "
            f"{result['times_faster']:.2f} x; nats after {done} updates: "
            f"train {result['train_loss_nats']:.5f}, valid {result['valid_loss_nats']:.5f}"
        )
    return {
        "model": {name: getattr(config.model, name) for name in config.model.__struct_fields__},
        "valid_loss_nats_before": before.loss_nats,
        "posteriors": found,
        "updates": done,
        "whole_epoch": epoch,
        "by_min_posterior": results,
    }


def number_of_updates(text: str) -> int | None:
    return None if text == "epoch" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", help="the folder of the corpus")
    parser.add_argument(
        "--updates", type=number_of_updates, default=300, metavar="N|epoch", help="train on for so many (default: 300)"
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        choices=THRESHOLDS,
        default=THRESHOLDS,
        help="the values of min_posterior; 0, which all are compared with, is always among them",
    )
    parser.add_argument("--heldout-tokens", type=int, default=20_000)
    arguments = parser.parse_args()
    thresholds = sorted({0.0, *arguments.thresholds})
    results = {}
    for path in arguments.runs:
        run = RunFolder.open(path)
        results[path.name] = measure(run, arguments.data, thresholds, arguments.updates, arguments.heldout_tokens)
    print(f"\n-> {save(Path(__file__).stem, {'results': results})}")


if __name__ == "__main__":
    main()
