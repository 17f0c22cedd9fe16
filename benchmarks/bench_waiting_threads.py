"""How should threads wait for one another: spin, sleep at once, or first the one and then the other?

On an idle machine, and beside other programs that compute. A small model: its operations are so short that waiting and
waking count.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.bench_dynamic_evaluation import make_walk
from benchmarks.bench_train_step import make_step
from benchmarks.harness import Environment, Worker, environments, in_turn, save, summary


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    with ExitStack() as running:
        for _ in range(count):
            program = running.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            running.callback(program.kill)
        yield


def measure(
    ways: Mapping[str, Environment], recipe: str, data: str | None, repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """For each of the ``ways`` the times of an update and of 20 segments of dynamic evaluation."""
    work = {
        "update": partial(make_step, "highrank", recipe, data),
        "20 segments of dynamic evaluation": partial(make_walk, "highrank", recipe, data, 20, "cpu"),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what, make in work.items():
        workers = {name: Worker(make, environment) for name, environment in ways.items()}
        times = in_turn(workers, repeats, warm_up=3)
        for worker in workers.values():
            worker.close()
        found[what] = {name: summary(seconds) for name, seconds in times.items()}
        for name, figures in found[what].items():
            print(f"  {what}: {name:28} {1e3 * figures['median_s']:8.2f} ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="kjv-demo")
    parser.add_argument("--data", help="the folder of the corpus")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    # Imported here because importing it sets what it says, which the process that spins must not be given.
    from highrank.cli.environment import BESIDE_OTHERS

    _, alone = environments()  # where threads wait as PyTorch comes
    ways: dict[str, Environment] = {
        "as PyTorch comes": alone,
        "asleep at once": {**alone, **BESIDE_OTHERS, "GOMP_SPINCOUNT": "0"},
        **{
            f"asleep after {count} looks": {**alone, **BESIDE_OTHERS, "GOMP_SPINCOUNT": str(count)}
            for count in (300, 1000, 3000)
        },
    }
    found = {}
    for count in range(3):
        print(f"beside {count} busy programs")
        with busy_programs(count):
            found[count] = measure(ways, arguments.recipe, arguments.data, arguments.repeats)
    result = {
        "recipe": arguments.recipe,
        "repeats": arguments.repeats,
        "environments": ways,
        "beside_busy_programs": found,
    }
    print(save(Path(__file__).stem, result))


if __name__ == "__main__":
    main()
