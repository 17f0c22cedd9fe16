"""Is there what the tests and benchmarks of a GPU need? In seconds, before minutes are spent: make test-gpu begins so.

``python -m tests.gpu.preflight`` from the root of the source. One line for each question; exit 1 if an answer is no.
"""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from highrank.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "filelock",
    "hypothesis",
    "msgspec",
    "numpy",
    "platformdirs",
    "pooch",
    "pytest",
    "rich",
    "safetensors",
    "tomli_w",
    "triton",
)


def packages() -> str:
    found = [(name, importlib.import_module(name)) for name in PACKAGES]
    return ", ".join(f"{name} {getattr(module, '__version__', '')}".strip() for name, module in found)


def ours() -> str:
    """Packages of these names elsewhere would be taken instead."""
    for name in ("benchmarks", "tests"):
        places = [Path(place).resolve() for place in importlib.import_module(name).__path__]
        assert places[0] == ROOT / name, f"{name} is {places[0]}"
    return str(ROOT)


def locks() -> str:
    """As ``runs.lock`` takes them, which older versions of filelock cannot."""
    from filelock import FileLock

    with tempfile.TemporaryDirectory() as folder, FileLock(Path(folder) / "lock", fallback_to_soft=False):
        return "held and released"


def compiler() -> str:
    """Triton builds the launcher of its kernels with it."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    assert found, "neither gcc nor clang is here, nor does CC name one"
    return found


def corpus() -> str:
    """The tests do without, the benchmarks of whole steps do not."""
    from highrank.data import find_corpus

    try:
        return str(find_corpus("penn"))
    except UserError as error:
        return f"not there, and no benchmark of whole steps without it ({error})"


def sums_in_float32() -> str:
    """A product of bfloat16 numbers added to a float32 sum, as the loss adds up the gradient of the weight."""
    import torch

    factor, total = (torch.ones(64, 64, device="cuda", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    torch.addmm(total, factor, factor, total.dtype, beta=1, out=total)
    assert total.eq(65).all()
    return "exact"


def recurrences() -> str:
    """Is an LSTM in bfloat16 cuDNN's? PyTorch's own loop in its place would make every comparison a fiction."""
    import torch

    names = []
    for width in (5, 20, 960):
        shapes = ((4 * width, width), (4 * width, width), (4 * width,), (4 * width,))
        weights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        start = torch.zeros(1, 3, width, device="cuda", dtype=torch.bfloat16)
        sequence = torch.randn(7, 3, width, device="cuda", dtype=torch.bfloat16)
        output = torch.lstm(sequence, (start, start), weights, True, 1, 0.0, True, False, False)[0]
        output.sum().backward()
        names.append(type(output.grad_fn).__name__)
    assert set(names) == {"CudnnRnnBackward0"}, f"got {', '.join(names)}"
    return f"cuDNN {torch.backends.cudnn.version()}"


def device() -> str:
    import torch

    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"
    return f"{torch.cuda.get_device_name()}, {versions}"


def answers(questions: tuple[Callable[[], str], ...]) -> Iterator[bool]:
    for question in questions:
        name = question.__name__.replace("_", " ")
        try:
            print(f"ok       {name}: {question()}", flush=True)
            yield True
        except Exception as error:  # whatever it is, the next question is worth an answer too
            print(f"MISSING  {name}: {type(error).__name__}: {error}", flush=True)
            yield False


def main() -> int:
    import torch

    questions = (packages, ours, locks, compiler, corpus)
    if torch.cuda.is_available():
        questions += (device, sums_in_float32, recurrences)
    else:
        print("no CUDA device: what needs one is skipped")
    return 0 if all(list(answers(questions))) else 1


if __name__ == "__main__":
    sys.exit(main())
