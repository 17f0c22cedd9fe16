"""What heads of equal size learned in equal time, and the ranks of what they predict: figures of trained runs."""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import save
from highrank.evaluate.components_of_run import COMPONENTS_FILE
from highrank.evaluate.rank_of_run import RANK_FILE
from highrank.reading import read_json
from highrank.runs import RunFolder, parameter_count

WHAT = "three heads of equal size, trained for about the same time on Penn Treebank: ranks, spectra and perplexities"
COMMAND = (
    "OMP_NUM_THREADS=1 highrank train penn-small --set train.lr=20 --set train.schedule=linear --set train.warmup=0.05 "
    "--set train.average_from=1 --set train.average_power=15, and --set train.epochs=4 (mixture of softmaxes); "
    "7 epochs with --set model.head=mixture-of-contexts; 7 epochs with --set model.head=softmax --set "
    "model.embedding_features=160 --set model.hidden_features=325 --set model.last_hidden_features=160; then of each "
    "highrank evaluate RUN --split valid, and test; highrank rank RUN --contexts 4000; highrank components RUN "
    "--control SOFTMAX; python -m benchmarks.penn_small_controls NAME=RUN ..."
)
VALIDATION = ("stage", "epoch", "step", "train_loss_nats", "perplexity", "averaging")
NOT_OF_RANK = ("singular_values", "model_sha256")  # the figure has the values
GAIN = ("stage", "loss_nats", "gain_nats", "by_target_frequency")


def figures(run: RunFolder) -> dict[str, Any]:
    """Settings, results of all stages, rank, components if it has any, and every validation."""
    rank = read_json(run.path / RANK_FILE)
    settings = msgspec.to_builtins(run.config)
    return {
        "settings": {section: settings[section] for section in ("model", "train")},
        "parameters": parameter_count(run.config, len(run.vocabulary)),
        **run.results,
        "rank": {key: value for key, value in rank.items() if key not in NOT_OF_RANK},
        "validations": [
            {key: record[key] for key in VALIDATION} for record in run.metrics() if record["event"] == "validation"
        ],
        **components(run),
    }


def components(run: RunFolder) -> dict[str, Any]:
    """What the components gain over one of them, and over the control that ``highrank components`` was given."""
    path = run.path / COMPONENTS_FILE
    if not path.exists():
        return {}
    found = read_json(path)
    gain = {over: {key: at[key] for key in GAIN if key in at} for over, at in found["gain"].items()}
    dead = {key: found[key] for key in ("stage", "split", "tokens", "dead")}
    return {"components": {**dead, "mean_prior_entropy_nats": found["prior_entropy"]["mean_nats"], "gain": gain}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="trained, evaluated, and measured by highrank rank")
    parser.add_argument("--note", default="", help="what the run folders do not say")
    arguments = parser.parse_args()
    results = {name: figures(RunFolder.open(Path(path))) for name, path in (pair.split("=") for pair in arguments.runs)}
    for name, found in results.items():
        rank, perplexity = found["rank"]["numerical_rank"], found["train"]["valid_perplexity"]
        print(
            f"{name}: validation perplexity {perplexity:.2f}, rank {rank:,} of {found['rank']['contexts']:,} contexts"
        )
    print(save(Path(__file__).stem, {"note": arguments.note, "results": results}, what=WHAT, command=COMMAND))


if __name__ == "__main__":
    main()
