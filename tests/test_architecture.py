"""The shape of the house: imports go one way, importing is cheap, and what a module offers is written down."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"

# From the top: a module imports from its own package and from those on a lower line, not from a neighbour on its line.
LAYERS = (
    ("cli",),
    ("train", "report", "explore"),
    ("evaluate",),
    ("runs",),
    ("models", "data"),
    ("heads",),
    ("functional",),
    ("ops",),
    ("files", "reading", "random", "progress", "workers", "duration", "perplexity"),
    ("launcher",),
    ("errors",),
)
HEIGHT = {package: -line for line, packages in enumerate(LAYERS) for package in packages}

HELP_LIMIT_S = 0.5


def modules(source: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """(dotted name, file, syntax tree) of every module of ``source``/highrank; a package is named without __init__."""
    for file in sorted((source / "highrank").rglob("*.py")):
        parts = list(file.relative_to(source).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), file, ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imported(name: str, file: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, wherever the statement stands in it.

    ``from a.b import c`` gives ``a.b.c``, which begins with ``a.b`` whether ``c`` is a module or a name in one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def arrows_against_the_flow(source: Path) -> list[str]:
    """One line for every import that goes up or sideways, and for every package that has no place in the order."""
    found = []
    for name, file, tree in modules(source):
        importer = name.removeprefix("highrank").lstrip(".").split(".")[0]
        if importer in ("", "__main__"):  # the root names everything, lazily; __main__ starts the command line
            continue
        if importer not in HEIGHT:
            found.append(f"{name}: {importer} has no place in LAYERS")
            continue
        for line, target in imported(name, file, tree):
            root, _, inside = target.partition(".")
            if root != "highrank" or inside == "__version__":
                continue
            imported_from = inside.split(".")[0]
            if imported_from not in HEIGHT:
                found.append(f"{name}:{line} imports {target}: of the root take only __version__, by name")
            elif imported_from != importer and HEIGHT[imported_from] >= HEIGHT[importer]:
                found.append(f"{name}:{line} imports {target}: {importer} may not know {imported_from}")
    return found


RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
}
HARMLESS_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def readers_that_run_code(source: Path) -> list[str]:
    """Calls that would run code of the file they read, or that do not say that they will not."""
    found = []
    for name, _, tree in modules(source):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            said = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            option, value = HARMLESS_WITH.get(called, (None, None))
            if called in RUNS_CODE or (option is not None and said.get(option) is not value):
                found.append(f"{name}:{node.lineno} calls {called}")
    return found


def public_modules_without_all(source: Path) -> list[str]:
    """Public modules that define or import something and do not say what of it is offered."""
    found = []
    for name, _, tree in modules(source):
        inside = name.split(".")[1:]
        if not inside or any(part.startswith("_") for part in inside):
            continue
        only_text = all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body)
        targets = [
            target
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        ]
        if not only_text and not any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            found.append(name)
    return found


def run_python(*arguments: str) -> str:
    """What a fresh interpreter, with this source tree first on its path, prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout


def write_tree(source: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        file = source / "highrank" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def test_imports_go_one_way() -> None:
    assert arrows_against_the_flow(SOURCE) == []


def test_every_public_module_says_what_it_offers() -> None:
    assert public_modules_without_all(SOURCE) == []


def test_nothing_that_is_read_can_run_code() -> None:
    assert readers_that_run_code(SOURCE) == []


@pytest.mark.parametrize(
    "call", ["torch.load(file)", "np.load(file, mmap_mode='r')", "pickle.loads(content)", "eval(text)"]
)
def test_a_reader_that_can_run_code_is_found(tmp_path: Path, call: str) -> None:
    write_tree(tmp_path, {"runs/reader.py": f"def read(file):\n    return {call}\n"})
    (found,) = readers_that_run_code(tmp_path)
    assert found == f"highrank.runs.reader:2 calls {call.partition('(')[0]}"


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("ops/chunked.py", "import highrank.heads\n", "ops may not know heads"),
        ("heads/softmax.py", "from highrank.train.loop import train\n", "heads may not know train"),
        ("heads/softmax.py", "def f():\n    from highrank import models\n", "heads may not know models"),
        ("heads/softmax.py", "from ..models import lstm\n", "heads may not know models"),
        ("heads/__init__.py", "from ..models.lstm import LSTM\n", "heads may not know models"),
        ("heads/__init__.py", "from .. import cli\n", "heads may not know cli"),
        ("models/lstm.py", "import highrank.data.corpus as corpus\n", "models may not know data"),
        ("data/corpus.py", "from highrank.models import lstm\n", "data may not know models"),
        ("train/loop.py", "from highrank import report\n", "train may not know report"),
        ("errors.py", "from highrank.ops import table\n", "errors may not know ops"),
        ("train/loop.py", "from highrank import MixtureOfSoftmaxes\n", "of the root take only __version__, by name"),
        ("train/loop.py", "import highrank\n", "of the root take only __version__, by name"),
        ("utils.py", "", "utils has no place in LAYERS"),
    ],
)
def test_an_arrow_against_the_flow_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    write_tree(tmp_path, {"__init__.py": "from highrank.cli import main\n", path: text})
    [found] = arrows_against_the_flow(tmp_path)
    assert complaint in found


def test_arrows_with_the_flow_are_left_alone(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "__init__.py": "from highrank.heads import Softmax\n",
            "__main__.py": "from highrank.cli.main import main\n",
            "cli/main.py": "from highrank import __version__, data, evaluate, report, train\n",
            "train/loop.py": "import torch\nfrom highrank.models.lstm import LSTM\nfrom highrank.data import corpus\n",
            "evaluate/rank.py": "from ..runs import load\nfrom . import perplexity\n",
            "ops/chunked/__init__.py": "from ..options import LossOptions\nfrom ...errors import UserError\n",
        },
    )
    assert arrows_against_the_flow(tmp_path) == []


def test_a_public_module_without_all_is_found(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "__init__.py": "",
            "heads/__init__.py": '"""Only text."""\n',
            "heads/softmax.py": "class Softmax: ...\n",
            "heads/mixture.py": '__all__ = ["Mixture"]\nclass Mixture: ...\n',
            "heads/typed.py": '__all__: list[str] = ["Typed"]\nclass Typed: ...\n',
            "heads/_shared.py": "def shape(): ...\n",
        },
    )
    assert public_modules_without_all(tmp_path) == ["highrank.heads.softmax"]


def test_importing_the_package_does_not_import_torch() -> None:
    assert run_python("-c", "import sys, highrank; print('torch' in sys.modules)").strip() == "False"


TRAIN = """
import sys
from highrank.cli.main import main
main(["train", {recipe!r}, "--data", {data!r}, "--out", {out!r}, "--set", "train.epochs=1", "--json"])
print("torch._dynamo" in sys.modules)
"""


def test_training_does_not_import_the_compiler(small_text: Path, tmp_path: Path) -> None:
    """It takes as long as PyTorch itself, before the first update."""
    recipe = Path(__file__).parent / "train" / "tiny.toml"
    program = TRAIN.format(recipe=str(recipe), data=str(small_text), out=str(tmp_path / "run"))
    assert run_python("-c", program).split()[-1] == "False"


@pytest.mark.parametrize("way", ["module", "console script"])
def test_help_answers_in_half_a_second(way: str) -> None:
    if way == "module":
        arguments = ["-m", "highrank", "--help"]
    else:  # what the installed script does
        arguments = ["-c", "import sys; from highrank.cli.main import main; sys.exit(main())", "--help"]
    elapsed_s = []
    for _ in range(5):
        started = time.perf_counter()
        assert "usage" in run_python(*arguments).lower()
        elapsed_s.append(time.perf_counter() - started)
        if elapsed_s[-1] < HELP_LIMIT_S:
            break
    assert min(elapsed_s) < HELP_LIMIT_S, f"best of {len(elapsed_s)}: {min(elapsed_s):.2f} s"
