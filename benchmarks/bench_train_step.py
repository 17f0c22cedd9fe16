"""How long does a training step take, and how much memory, beside the textbook model (materialised softmaxes)?"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import in_turn, peak_rss_bytes, save, summary
from benchmarks.textbook import TextbookModel, accumulated_step
from highrank.data import find_corpus, load_corpus
from highrank.data.batches import Columns
from highrank.runs import Config, build_model, find_recipe, read_config
from highrank.train import StageState, update

Step = Callable[[], float]


def our_step(config: Config, vocab_size: int, columns: Columns) -> Step:
    """The training loop's own update, again and again, in segments of ``bptt``; returns the loss in nats."""
    train = config.train
    model = build_model(config, vocab_size).train()
    state = StageState(
        model,
        lr=train.lr,
        weight_decay=train.weight_decay,
        averaging=False,
        groups=train.batch // config.micro_batch,
        batch=config.micro_batch,
    )

    def step() -> float:
        done = update(state, columns, config, seed=train.seed, lr=train.lr, length=train.bptt)
        state.position.add_step(done.steps, done.steps * train.batch)
        return done.loss.item()

    return step


def textbook_step(config: Config, vocab_size: int, columns: Columns) -> Step:
    """The same update by the original's formula, epsilon inside the logarithm included."""
    sizes, dropout, train = config.model, config.dropout, config.train
    model = TextbookModel(
        vocab_size,
        emsize=sizes.embedding_features,
        nhid=sizes.hidden_features,
        nhidlast=sizes.last_hidden_features,
        nlayers=sizes.num_layers,
        n_experts=sizes.num_components,
        dropout=dropout.output,
        dropouth=dropout.hidden,
        dropouti=dropout.input,
        dropoute=dropout.embedding,
        dropoutl=dropout.context,
        wdrop=dropout.weight,
        epsilon=1e-8,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    groups = train.batch // config.micro_batch
    hidden, start = [model.init_hidden(config.micro_batch) for _ in range(groups)], 0

    def step() -> float:
        nonlocal hidden, start
        segment = columns.segment(start, train.bptt)
        loss, hidden = accumulated_step(
            model,
            optimizer,
            segment.tokens,
            segment.target,
            hidden,
            lr=train.lr,
            seq_len=train.bptt,
            bptt=train.bptt,
            alpha=train.alpha,
            beta=train.beta,
            clip=train.clip,
        )
        start += train.bptt
        return float(loss)

    return step


def three_steps(make: str, recipe: str, data: str | None) -> None:
    """For the measurement of memory: a step, a second one when gradients and state are there, and a third."""
    step = make_steps(recipe, data)[make]
    for _ in range(3):
        step()


def make_steps(recipe: str, data: str | None) -> dict[str, Step]:
    config = read_config(find_recipe(recipe))
    corpus = load_corpus(find_corpus(config.data.corpus, data))
    columns = Columns(corpus.tokens["train"], config.train.batch)
    torch.manual_seed(config.train.seed)
    makers = {"highrank": our_step, "textbook": textbook_step}
    return {name: LazyStep(partial(make, config, len(corpus.vocabulary), columns)) for name, make in makers.items()}


class LazyStep:
    """Makes its model when first called, so that a process that measures one holds one."""

    def __init__(self, make: Callable[[], Step]) -> None:
        self.make: Callable[[], Step] = make
        self.step: Step | None = None
        self.losses: list[float] = []

    def __call__(self) -> float:
        self.step = self.step or self.make()
        self.losses.append(self.step())
        return self.losses[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="penn")
    parser.add_argument("--data", help="the folder of the corpus")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    steps = make_steps(arguments.recipe, arguments.data)
    times = {name: summary(seconds) for name, seconds in in_turn(steps, arguments.repeats).items()}
    peaks = {name: peak_rss_bytes(partial(three_steps, name, arguments.recipe, arguments.data)) for name in steps}
    idle = peak_rss_bytes(_nothing)
    result = {
        "recipe": arguments.recipe,
        "repeats": arguments.repeats,
        "step": times,
        "loss_nats_by_step": {name: step.losses for name, step in steps.items()},
        "peak_rss_bytes": peaks,
        "idle_rss_bytes": idle,
        "times_faster": times["textbook"]["median_s"] / times["highrank"]["median_s"],
        "share_of_memory": peaks["highrank"] / peaks["textbook"],
    }
    path = save(f"{Path(__file__).stem}.{arguments.recipe}", result)
    for name in steps:
        print(f"{name:10} {times[name]['median_s']:.2f} s a step, peak {peaks[name] / 2**20:,.0f} MiB")
    print(f"{result['times_faster']:.2f} times faster, {100 * result['share_of_memory']:.0f}% of the memory -> {path}")


def _nothing() -> None:
    """What Python, PyTorch and this file cost by themselves."""


if __name__ == "__main__":
    main()
