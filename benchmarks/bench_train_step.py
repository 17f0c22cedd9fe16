"""How long does a training step take, and how much memory, beside the textbook model (materialised softmaxes)?

Memory is the largest resident size of the process, or, on a GPU, the most that PyTorch had taken there.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import LARGE_PAGES, Worker, attempt, environments, in_turn, peak_rss_bytes, save, summary
from benchmarks.textbook import TextbookModel, accumulated_step, textbook_model
from highrank.data import find_corpus, load_corpus
from highrank.data.batches import Columns
from highrank.models import LanguageModel
from highrank.runs import Config, build_model, find_recipe, read_config
from highrank.train import StageState, update
from highrank.workers import ALONE, Workers

Step = Callable[[], Tensor]

# A call on a GPU is several steps, which the host asks for without waiting, as the training loop does.
STEPS_A_CALL = {"cpu": 1, "cuda": 30}
# The first call compiles. What fails, or waits for ever, must not take the others' figures with it.
WITHIN_S = {"cpu": None, "cuda": 180.0}

# By name, with what each changes in the recipe. One softmax is the same model without the mixture: what that costs.
OURS = {
    "highrank": (),
    "highrank, bfloat16": ("train.precision=bfloat16",),
    "highrank, one softmax": ("model.head=softmax",),
    "highrank, one softmax, bfloat16": ("model.head=softmax", "train.precision=bfloat16"),
}
# On a GPU everything, the textbook too, takes the whole batch in one pass, as recorded updates must.
IN_ALL = {"cpu": (), "cuda": ("train.micro_batch=0",)}
# There: kernels of ours for the recurrence, and updates recorded once a length.
PERSISTENT = ("train.precision=bfloat16", "train.recurrence=triton")
RECORDED = ("train.cuda_graphs=true",)
OURS_ON_A_GPU = {
    "highrank, recorded": RECORDED,
    "highrank, bfloat16, recorded": ("train.precision=bfloat16", *RECORDED),
    "highrank, bfloat16, recurrence by triton": PERSISTENT,
    "highrank, bfloat16, recurrence by triton, recorded": (*PERSISTENT, *RECORDED),
}
OURS_ON_A_GPU |= {
    name.replace("highrank", "highrank, one softmax"): ("model.head=softmax", *settings)
    for name, settings in OURS_ON_A_GPU.items()
}
# On a CPU: the same with large pages.
OURS_ON_A_CPU = {"highrank, large pages": ()}
TEXTBOOK, TEXTBOOK_IN_LARGE_PAGES = "textbook", "textbook, large pages"
TEXTBOOK_AUTOCAST = "textbook, bfloat16 autocast"  # on a GPU: what half precision alone brings
TEXTBOOK_EPSILON = 1e-8  # inside the original's logarithm


def our_step(
    model: LanguageModel,
    config: Config,
    columns: Columns,
    *,
    workers: Workers = ALONE,
    averaging: bool = False,
) -> Step:
    """The training loop's own update, again and again, in segments of ``bptt``; ``averaging``: of the weights too.

    Returns the loss in nats a token, still on the device; with several ``workers`` this one's part of it.
    """
    train = config.train
    state = StageState(model.train(), config)
    if averaging:
        state.start_averaging()

    def step() -> Tensor:
        done = update(state, columns, config, seed=train.seed, lr=train.lr, length=train.bptt, workers=workers)
        state.position.add_step(done.steps, done.steps * train.batch)
        return done.loss_sum / (done.steps * train.batch)

    return step


def textbook_step(model: TextbookModel, config: Config, columns: Columns, *, autocast: bool = False) -> Step:
    """The same update by the original's formula."""
    train, device = config.train, model.prior.weight.device
    optimizer = torch.optim.SGD(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    groups = train.batch // config.micro_batch
    hidden, start = [model.init_hidden(config.micro_batch) for _ in range(groups)], 0

    def step() -> Tensor:
        nonlocal hidden, start
        segment = columns.segment(start, train.bptt).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
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
        return loss

    return step


def make_step(candidate: str, recipe: str, data: str | None, device: str = "cpu") -> Callable[[], float]:
    """What takes ``STEPS_A_CALL`` steps and returns the last one's loss; ``candidate``: one of ours, or a textbook."""
    ours = OURS | OURS_ON_A_CPU | OURS_ON_A_GPU
    on = torch.device(device).type
    config = read_config(find_recipe(recipe), overrides=(*IN_ALL[on], *ours.get(candidate, ())))
    corpus = load_corpus(find_corpus(config.data.corpus, data))
    columns = Columns(corpus.tokens["train"], config.train.batch)
    torch.manual_seed(config.train.seed)
    words = len(corpus.vocabulary)
    if candidate in ours:
        step = our_step(build_model(config, words).to(device), config, columns)
    else:
        model = textbook_model(config, words, epsilon=TEXTBOOK_EPSILON).to(device)
        step = textbook_step(model, config, columns, autocast=candidate == TEXTBOOK_AUTOCAST)

    def steps() -> float:
        losses = [step() for _ in range(STEPS_A_CALL[on])]
        return losses[-1].item()

    return steps


def make_nothing() -> Callable[[], None]:
    """What Python, PyTorch and this file cost by themselves."""
    return lambda: None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="penn")
    parser.add_argument("--data", help="the folder of the corpus")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    # Each in a process of its own, for its own memory and environment: ours as the command line sets it, the textbook
    # as PyTorch comes.
    as_it_comes, alone = environments()
    on = torch.device(arguments.device).type
    ours = OURS | (OURS_ON_A_GPU if on == "cuda" else OURS_ON_A_CPU)
    mixtures = [name for name in ours if "one softmax" not in name]  # the textbook's model
    of_each = dict.fromkeys(ours, alone) | {TEXTBOOK: as_it_comes}
    if on == "cpu":
        of_each |= {name: {**alone, **LARGE_PAGES} for name in (*OURS_ON_A_CPU, TEXTBOOK_IN_LARGE_PAGES)}
    else:
        of_each |= {TEXTBOOK_AUTOCAST: as_it_comes}
    workers = {
        name: Worker(
            partial(make_step, name, arguments.recipe, arguments.data, arguments.device),
            environment,
            within_s=WITHIN_S[on],
        )
        for name, environment in of_each.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in workers}
    steps = {name: partial(keep_loss, worker, losses[name]) for name, worker in workers.items()}
    failed: dict[str, str] = {}
    of_calls = in_turn(steps, arguments.repeats, warm_up=2, failed=failed)
    peaks = {}
    for name in of_calls:
        peak, why = attempt(workers[name].close)
        if why is None:
            peaks[name] = peak
        else:
            failed[name] = why
    steps_a_call = STEPS_A_CALL[on]
    times = {name: summary([each / steps_a_call for each in of_calls[name]]) for name in peaks}
    mixtures = [name for name in mixtures if name in times]
    result = {
        "recipe": arguments.recipe,
        "device": arguments.device,
        "repeats": arguments.repeats,
        "steps_a_repeat": steps_a_call,
        "settings": IN_ALL[on],
        "environment": alone,
        "failed": failed,
        "step": times,
        "last_loss_nats_by_repeat": losses,
        "peak_bytes": peaks,
        "idle_rss_bytes": peak_rss_bytes(make_nothing),
        "times_faster": {
            name: {
                other: times[other]["median_s"] / times[name]["median_s"]
                for other in times
                if other not in ours and (other != TEXTBOOK_AUTOCAST or "bfloat16" in name)
            }
            for name in mixtures
        },
        "share_of_memory": {name: peaks[name] / peaks[TEXTBOOK] for name in mixtures if TEXTBOOK in peaks},
        "mixture_in_steps_of_one_softmax": {
            name.removeprefix("highrank").removeprefix(", ") or "float32": times[name]["median_s"]
            / times[one_softmax]["median_s"]
            for name in mixtures
            if (one_softmax := name.replace("highrank", "highrank, one softmax")) in times
        },
    }
    path = save(f"{Path(__file__).stem}.{Path(arguments.recipe).stem}.{arguments.device}", result)
    for name, why in failed.items():
        print(f"{name:54} failed: {why}")
    for name in times:
        print(f"{name:54} {1e3 * times[name]['median_s']:,.1f} ms a step, peak {peaks[name] / 2**20:,.0f} MiB")
    for name in result["share_of_memory"]:
        ratios = ", ".join(
            f"{ratio:.2f} times faster than the {other}" for other, ratio in result["times_faster"][name].items()
        )
        print(f"{name}: {ratios}; {100 * result['share_of_memory'][name]:.0f}% of the memory")
    for how, steps_of in result["mixture_in_steps_of_one_softmax"].items():
        print(f"{how}: a step takes {steps_of:.2f} times that of one softmax in place of the mixture")
    print(f"-> {path}")
    return 1 if failed else 0


def keep_loss(step: Callable[[], float], losses: list[float]) -> None:
    losses.append(step())


if __name__ == "__main__":
    sys.exit(main())
