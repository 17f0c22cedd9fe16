"""How long does a segment of dynamic evaluation take, beside the textbook loop?"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Worker, environments, in_turn, save, summary
from benchmarks.textbook import dynamic_losses, textbook_model
from highrank.data import find_corpus, load_corpus
from highrank.data.batches import Columns
from highrank.evaluate import Adaptation, DynamicSettings, GradientStatistics
from highrank.runs import Config, build_model, find_recipe, read_config

TOO_SMALL_A_STEP = 1e-6  # untrained weights must stay where numbers are ordinary; the time is that of any rate


def our_segments(config: Config, vocab_size: int, tokens: NDArray[np.int32], device: str) -> Iterator[Tensor]:
    """The loss of one segment after the other, before the weights move."""
    model = build_model(config, vocab_size).to(device)
    squares = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    settings = DynamicSettings(lamb=config.dynamic.lamb, lr=TOO_SMALL_A_STEP, bptt=config.dynamic.bptt)
    with Adaptation(model, GradientStatistics(squares, 1), settings) as adaptation:
        for segment in Columns(tokens, 1).segments(config.dynamic.bptt):
            segment = segment.to(torch.device(device))
            yield adaptation.step(segment.tokens, segment.target)


def textbook_segments(config: Config, vocab_size: int, tokens: NDArray[np.int32], device: str) -> Iterator[Tensor]:
    model = textbook_model(config, vocab_size, epsilon=1e-8).to(device)
    rms = [torch.rand_like(parameter) for parameter in model.parameters()]
    text = torch.from_numpy(tokens.astype(np.int64)).to(device)
    dynamic = config.dynamic
    return dynamic_losses(model, text, rms, dynamic.lamb, TOO_SMALL_A_STEP, dynamic.epsilon, dynamic.bptt, shortest=1)


def make_walk(candidate: str, recipe: str, data: str | None, segments: int, device: str) -> Callable[[], None]:
    config = read_config(find_recipe(recipe))
    corpus = load_corpus(find_corpus(config.data.corpus, data))
    torch.manual_seed(config.train.seed)
    make = {"highrank": our_segments, "textbook": textbook_segments}[candidate]
    walk = make(config, len(corpus.vocabulary), corpus.tokens["test"], device)

    def some_segments() -> None:
        for _ in islice(walk, segments):
            pass
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()  # a segment is over when it is computed, not when it has been asked for

    return some_segments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="penn-small")
    parser.add_argument("--data", help="the folder of the corpus")
    parser.add_argument("--segments", type=int, default=20, help="of a measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    # Each in a process of its own: ours in the environment that the command line sets, the textbook as PyTorch comes.
    as_it_comes, alone = environments()
    of_each = {"highrank": alone, "textbook": as_it_comes}
    workers = {
        name: Worker(
            partial(
                make_walk,
                name,
                arguments.recipe,
                arguments.data,
                arguments.segments,
                arguments.device,
            ),
            environment,
        )
        for name, environment in of_each.items()
    }
    times = in_turn(workers, arguments.repeats)
    peaks = {name: worker.close() for name, worker in workers.items()}
    segment = {name: summary([call / arguments.segments for call in seconds]) for name, seconds in times.items()}
    result = {
        "recipe": arguments.recipe,
        "device": arguments.device,
        "repeats": arguments.repeats,
        "segments_a_repeat": arguments.segments,
        "environment": alone,
        "segment": segment,
        "peak_bytes": peaks,
        "times_faster": {
            name: segment[name]["median_s"] / segment["highrank"]["median_s"] for name in segment if name != "highrank"
        },
    }
    threads = torch.get_num_threads()
    on = torch.device(arguments.device).type
    if on == "cpu":
        on += f".{threads}-thread{'s' * (threads > 1)}"
    path = save(f"{Path(__file__).stem}.{Path(arguments.recipe).stem}.{on}", result)
    for name, figures in segment.items():
        print(f"{name:26} {1e3 * figures['median_s']:.2f} ms a segment")
    print(f"{result['times_faster']['textbook']:.2f} times faster -> {path}")


if __name__ == "__main__":
    main()
