"""The table of the shapes that were tried for penn-small, from ``benchmarks/results/penn_small_trials.json``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from docs.generate.markdown import table
from docs.generate.results import RESULTS

__all__ = ["trial_table"]


def trial_table() -> str:
    """A row a trial: its shape, its training loss around so many tokens, and what it was validated with."""
    trials = json.loads((RESULTS / "penn_small_trials.json").read_text(encoding="utf-8"))["trials"]
    tokens = sorted({at for trial in trials for at in trial["train_loss_nats_around_tokens"]}, key=int)
    shape = ["K", "D", "LSTM", "batch x segment", "lr", "alpha, beta", "text"]
    head = [*shape, *(f"{int(at) // 1000}k" for at in tokens), "validation perplexity"]
    return table(head, [_row(trial, tokens) for trial in trials], numbers=range(len(head) - 1))


def _row(trial: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    settings, losses = trial["settings"], trial["train_loss_nats_around_tokens"]
    validations = [
        f"epoch {each['epoch']}: {each['perplexity']:.0f}{' averaged' * each['averaging']}"
        for each in trial["validation"]
    ]
    return [
        str(settings["components"]),
        str(settings["embedding_features"]),
        f"{settings['hidden_features']}, {settings['last_hidden_features']}",
        f"{settings['batch']} x {settings['bptt']}",
        f"{settings['lr']:g}",
        f"{settings['alpha']:g}, {settings['beta']:g}",
        trial["training_text"],
        *(f"{losses[at]:.3f}" if at in losses else "" for at in tokens),
        "; ".join(validations) or "stopped",
    ]
