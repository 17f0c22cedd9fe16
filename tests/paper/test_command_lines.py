"""The paper's own command lines: they mean what the recipes say, and they run, from inside the folder paper/."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from highrank.data import Vocabulary
from highrank.errors import UserError
from highrank.runs import Config, RunFolder, find_recipe, read_config, to_toml
from paper import options

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# As its README has them.
COMMANDS = {
    "penn": (
        "python main.py --data data/penn --dropouti 0.4 --dropoutl 0.29 --dropouth 0.225 --seed 28 --batch_size 12 "
        "--lr 20.0 --epoch 1000 --nhid 960 --nhidlast 620 --emsize 280 --n_experts 15 --save PTB --single_gpu",
        "python finetune.py --data data/penn --dropouti 0.4 --dropoutl 0.29 --dropouth 0.225 --seed 28 --batch_size 12 "
        "--lr 25.0 --epoch 1000 --nhid 960 --emsize 280 --n_experts 15 --save PATH_TO_FOLDER --single_gpu",
        "python dynamiceval.py --model PATH_TO_FOLDER/finetune_model.pt --lamb 0.075",
    ),
    "wikitext-2": (
        "python main.py --epochs 1000 --data data/wikitext-2 --save WT2 --dropouth 0.2 --seed 1882 --n_experts 15 "
        "--nhid 1150 --nhidlast 650 --emsize 300 --batch_size 15 --lr 15.0 --dropoutl 0.29 --small_batch_size 5 "
        "--max_seq_len_delta 20 --dropouti 0.55 --single_gpu",
        "python finetune.py --epochs 1000 --data data/wikitext-2 --save PATH_TO_FOLDER --dropouth 0.2 --seed 1882 "
        "--n_experts 15 --nhid 1150 --emsize 300 --batch_size 15 --lr 20.0 --dropoutl 0.29 --small_batch_size 5 "
        "--max_seq_len_delta 20 --dropouti 0.55 --single_gpu",
        "python dynamiceval.py --data data/wikitext-2 --model PATH_TO_FOLDER/finetune_model.pt --epsilon 0.002",
    ),
}
# Later options win: the same command lines at a size for a test.
SMALL = (
    "--nhid 16 --nhidlast 12 --emsize 8 --n_experts 3 --epochs 2 --batch_size 4 --small_batch_size 2 --bptt 10",
    "--nhid 16 --emsize 8 --n_experts 3 --epochs 1 --batch_size 4 --small_batch_size 2 --bptt 10",
    "--batch_size 4",
)


def words_of(command: str) -> list[str]:
    """What follows ``python script.py``."""
    return shlex.split(command)[2:]


def training(*words: str) -> Config:
    return options.training_config(options.training_parser().parse_args(words))


def resolved(name: str) -> Config:
    """What the three commands make of the configuration, one after the other."""
    train, finetune, dynamic = map(words_of, COMMANDS[name])
    config, notices = options.finetune_config(training(*train), options.finetune_parser().parse_args(finetune))
    assert notices == []
    return options.dynamic_config(config, options.dynamic_parser().parse_args(dynamic))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_command_lines_are_the_recipes(name: str) -> None:
    assert resolved(name) == read_config(find_recipe(name))


def test_three_gpus_take_the_whole_batch_at_once() -> None:
    command = COMMANDS["wikitext-2"][0].replace("--small_batch_size 5", "--small_batch_size 15")
    one, three = (training(*words_of(line)) for line in (COMMANDS["wikitext-2"][0], command))
    assert (one.train.micro_batch, three.train.micro_batch) == (5, 0)
    assert msgspec.structs.replace(one, train=three.train) == three


@pytest.mark.parametrize(("name", "head"), [("moc", "mixture-of-contexts"), ("softmax", "softmax")])
@pytest.mark.parametrize("corpus", list(COMMANDS))
def test_the_controls_differ_in_the_head_alone(corpus: str, name: str, head: str) -> None:
    recipe = read_config(find_recipe(corpus))
    control = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, head=head))
    assert read_config(find_recipe(f"{corpus}-{name}")) == control


def test_the_defaults_of_the_original() -> None:
    config = training()
    model, dropout, train = config.model, config.dropout, config.train
    assert config.data.corpus == "penn"
    assert (model.embedding_features, model.hidden_features, model.last_hidden_features) == (400, 1150, 400)
    assert (model.num_layers, model.num_components, model.tied) == (3, 10, True)
    assert (dropout.output, dropout.hidden, dropout.input, dropout.embedding) == (0.4, 0.3, 0.65, 0.1)
    assert (dropout.context, dropout.weight) == (0.3, 0.5)
    assert (train.lr, train.clip, train.epochs, train.batch, train.micro_batch) == (30.0, 0.25, 8000, 20, 0)
    assert (train.bptt, train.max_length_delta, train.seed, train.nonmono) == (70, 40, 1111, 5)
    assert (train.alpha, train.beta, train.weight_decay) == (2.0, 1.0, 1.2e-6)


def test_flags_that_switch_off() -> None:
    assert training("--tied").model.tied is False
    arguments = options.training_parser().parse_args(["--cuda"])
    assert options.training_device(arguments).device == "cpu"


def test_what_finetuning_takes_over_and_what_it_changes() -> None:
    config = training("--batch_size", "12", "--small_batch_size", "4", "--dropouth", "0.2")

    def finetuned(*words: str) -> tuple[Config, list[str]]:
        return options.finetune_config(config, options.finetune_parser().parse_args(["--save", "RUN", *words]))

    same, notices = finetuned()
    assert (same.finetune.lr, same.finetune.epochs, same.train) == (30.0, 8000, config.train)
    assert notices == []
    changed, notices = finetuned("--batch_size", "6", "--dropouth", "0.5", "--nhid", "7")
    assert (changed.train.batch, changed.train.micro_batch) == (6, 0)
    assert (changed.dropout, changed.model) == (config.dropout, config.model)
    assert len(notices) == 4
    assert "--dropouth 0.5 has no effect" in notices[1]


def test_what_is_not_supported_is_one_line() -> None:
    with pytest.raises(UserError, match="--model GRU: only LSTM"):
        options.training_device(options.training_parser().parse_args(["--model", "GRU"]))
    with pytest.raises(UserError, match=r"^--small_batch_size: expected a divisor of --batch_size"):
        training("--small_batch_size", "7")
    with pytest.raises(UserError, match=r"^--data: expected a name of printable characters, got ''"):
        training("--data", "/")
    with pytest.raises(UserError, match=r"no such folder; get_data\.sh puts"):
        options.check_data("nowhere")


def test_all_visible_gpus_share_the_work_without_single_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)

    def shared(*words: str) -> tuple[int, int]:
        """Columns of a micro-batch, and workers."""
        count = options.gpus(options.training_parser().parse_args(words))
        config = options.shared(training(*words), count)
        return config.micro_batch, options.workers_for(config, count)

    whole = ("--batch_size", "15", "--small_batch_size", "15")
    assert shared(*whole, "--single_gpu") == (15, 1)
    assert shared(*whole, "--cuda") == (15, 1)  # which switches the GPU off
    assert shared(*whole) == (5, 3)
    assert shared("--batch_size", "15", "--small_batch_size", "5") == (5, 3)
    assert shared("--batch_size", "12") == (4, 3)
    assert shared("--batch_size", "20") == (1, 3)  # seven columns for the busiest, as it has to be
    assert shared("--batch_size", "2") == (1, 2)


def test_the_name_of_a_model_file_chooses_the_stage(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = RunFolder.create(run, training("--emsize", "4"), Vocabulary(("a", "<eos>")), None)
    for name, stage in (("finetune_model.pt", "finetune"), ("model.pt", "train"), ("", None)):
        assert options.find_model(str(run / name)) == (made, stage)
    with pytest.raises(UserError, match=r"FOLDER/model\.pt or FOLDER/finetune_model\.pt"):
        options.find_model(str(run / "other.pt"))
    (tmp_path / "finetune_model.pt").write_text("a pickle of 2018")
    with pytest.raises(UserError, match=r"highrank import state\.pt --out FOLDER"):
        options.find_model(str(tmp_path / "finetune_model.pt"))
    with pytest.raises(UserError, match="not a run folder"):
        options.find_model(str(tmp_path / "nowhere" / "model.pt"))


Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of paper/ with a small text under the names of both corpora."""
    folder = tmp_path_factory.mktemp("paper") / "paper"
    shutil.copytree(REPOSITORY / "paper", folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    generator = np.random.default_rng(1)
    words = np.array([f"w{number}" for number in range(30)])
    for corpus in COMMANDS:
        (folder / "data" / corpus).mkdir(parents=True)
        for split, lines in (("train", 60), ("valid", 15), ("test", 15)):
            drawn = words[generator.geometric(0.15, (lines, 9)) % len(words)]
            text = "".join(" ".join(line) + "\n" for line in drawn.tolist())
            (folder / "data" / corpus / f"{split}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def script(folder: Path) -> Script:
    """Run a command line inside the copy of paper/."""
    paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    given = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}

    def run(command: str, *, code: int = 0) -> "subprocess.CompletedProcess[str]":
        words, environment = [sys.executable, *shlex.split(command)[1:]], os.environ | given
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.mark.parametrize(("name", "save"), [("penn", "PTB"), ("wikitext-2", "WT2")])
def test_the_command_lines_run(folder: Path, script: Script, name: str, save: str) -> None:
    train, finetune, dynamic = (f"{line} {small}" for line, small in zip(COMMANDS[name], SMALL, strict=True))
    printed = script(train).stdout
    [run] = folder.glob(f"{save}-????????-??????")
    assert f"run folder: {run.name}" in printed
    exact, paper = re.findall(r"train, test: perplexity ([0-9.]+) over every predicted token; ([0-9.]+) as", printed)[0]
    assert 0 < float(paper) < float(exact)

    script(finetune.replace("PATH_TO_FOLDER", run.name))
    script(dynamic.replace("PATH_TO_FOLDER", run.name))
    config = RunFolder.open(run).config
    assert config.finetune.lr == read_config(find_recipe(name)).finetune.lr
    assert config.finetune.epochs == 1
    results = json.loads((run / "results.json").read_text())
    assert results["finetune"]["epochs"] == 1
    assert results["dynamic"]["stage"] == "finetune"
    assert results["dynamic"]["settings"]["lamb"] == (0.075 if name == "penn" else 0.02)


def test_the_rest_of_what_the_scripts_can(folder: Path, script: Script) -> None:
    """Going on, the validation text, few segments, words; after one small training run."""
    small = f"--data data/penn --save MORE {SMALL[0]}"
    script(f"python main.py {small}")
    [run] = folder.glob("MORE-*")
    # Fine-tuning writes its settings there, and does not stand in the way of going on.
    config = RunFolder.open(run).config
    finetuned = msgspec.structs.replace(config, finetune=msgspec.structs.replace(config.finetune, lr=3.0))
    (run / "config.toml").write_text(to_toml(finetuned))
    going_on = script(f"python main.py {small} --save {run.name} --continue_train")
    assert "over every predicted token" in going_on.stdout
    other = script(f"python main.py {small} --save {run.name} --continue_train --nonmono 2", code=1)
    assert other.stderr.startswith("main.py: ")
    assert "started with other settings" in other.stderr

    dynamic = f"python dynamiceval.py --model {run.name}/model.pt --batch_size 4 --val --gpu -1 --ms"
    whole = script(dynamic).stdout
    assert "dynamic evaluation of train, valid" in whole
    # The whole text is 30 segments a column: with as many the figures are those of the whole.
    assert script(f"{dynamic} --max_batches 30").stdout == whole

    script(f"python generate.py --checkpoint {run.name}/model.pt --words 45 --outf words.txt --temperature 1.2")
    lines = (folder / "words.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [20, 20, 5]


def test_what_a_launcher_says_wrongly_is_one_line(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    said = script("python main.py --data data/penn", code=1).stderr
    assert said.startswith("main.py: WORLD_SIZE='two': expected a number")
    assert said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_get_data(folder: Path, tmp_path: Path) -> None:
    command = tmp_path / "highrank"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    words = ["sh", str(folder / "get_data.sh")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"data get {name} --out data/{name}" for name in COMMANDS]
    command.write_text("#!/bin/sh\nexit 1\n")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "data/penn" in done.stderr
