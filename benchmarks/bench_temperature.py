"""What does a softmax temperature that is tuned on validation text bring on test? Takes run folders."""

import argparse
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import save
from highrank.evaluate import evaluate, evaluate_at, tune_temperature_of
from highrank.runs import RunFolder
from highrank.train import corpus_of


def measure(run: RunFolder, data: str | None) -> dict[str, Any]:
    """Of the best model of the last stage. Times are of this process, on the wall."""
    corpus, stage = corpus_of(run, data), run.last_stage()
    model = run.load_model(stage)
    began = time.perf_counter()
    search = tune_temperature_of(run, model, corpus)
    search_s = time.perf_counter() - began
    plain = evaluate(model, corpus.tokens["test"])
    tempered, untempered = evaluate_at(model, corpus.tokens["test"], (search.temperature, 1.0))
    gain_nats = untempered.loss_nats - tempered.loss_nats
    print(
        f"{run.path.name}, {stage}: temperature {search.temperature:g}, test perplexity {tempered.perplexity:.2f} "
        f"instead of {untempered.perplexity:.2f} ({gain_nats:.4f} nats); search {search_s:.1f} s, "
        f"evaluation {tempered.elapsed_s:.1f} s instead of {plain.elapsed_s:.1f} s",
        flush=True,
    )
    return {
        "stage": stage,
        "settings": {section: msgspec.to_builtins(getattr(run.config, section)) for section in ("model", "train")},
        "temperature": search.temperature,
        "valid_loss_nats_by_temperature": {f"{at:g}": loss for at, loss in search.loss_nats.items()},
        "test_perplexity": {"tempered": tempered.perplexity, "untempered": untempered.perplexity},
        "test_gain_nats": gain_nats,
        "elapsed_s": {"search": search_s, "tempered": tempered.elapsed_s, "plain": plain.elapsed_s},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="trained run folders, of different names")
    parser.add_argument("--data", help="the folder of the corpus (default: that of each run)")
    arguments = parser.parse_args()
    results = {path.name: measure(RunFolder.open(path), arguments.data) for path in arguments.runs}
    print(f"-> {save(Path(__file__).stem, {'results': results})}")


if __name__ == "__main__":
    main()
