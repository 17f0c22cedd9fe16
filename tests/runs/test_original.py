"""``highrank import``: models of the 2017 code give the same numbers here; what is not one is refused in one line."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks import textbook
from benchmarks.same_bits import checksums
from benchmarks.textbook import TextbookModel
from highrank.cli import import_model
from highrank.cli.main import main
from highrank.data import load_corpus
from highrank.errors import UserError
from highrank.runs import Config, RunFolder, build_model, find_recipe, parse_config, read_config
from highrank.runs.doctor import examine
from highrank.runs.original import OriginalSizes, from_original, import_original, read_state_dict, to_original
from highrank.runs.tensors import put_model_tensors

State = dict[str, Tensor]
WORDS = 40


def run_import(*words: str) -> int:
    parser = argparse.ArgumentParser()
    import_model.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["import", *words])
    code = arguments.run(arguments)
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 40 words, <eos> among them."""
    folder = tmp_path_factory.mktemp("corpora") / "small"
    folder.mkdir()
    generator = np.random.default_rng(5)
    words = [f"w{number}" for number in range(WORDS - 1)]
    for split, lines in (("train", 30), ("valid", 8), ("test", 8)):
        drawn = generator.choice(words, (lines, 9)).tolist()
        first = [words] if split == "train" else []
        (folder / f"{split}.txt").write_text("".join(" ".join(line) + "\n" for line in [*first, *drawn]))
    return folder


def original(seed: int = 0, *, tied: bool = True, **sizes: int) -> TextbookModel:
    torch.manual_seed(seed)
    model = TextbookModel(
        **{"vocab_size": WORDS, "emsize": 6, "nhid": 9, "nhidlast": 7, "nlayers": 3, "n_experts": 4} | sizes
    )
    if not tied:
        model.decoder.weight = nn.Parameter(torch.empty_like(model.encoder.weight))
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start of training, so that every term counts
            parameter.uniform_(-0.8, 0.8)
    return model.eval()


def awd_lstm_state() -> State:
    """What an AWD-LSTM has: no prior, no latent, a last layer as wide as the embedding."""
    state = original(nhidlast=6).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(("prior", "latent"))}


def config_of(sizes: OriginalSizes) -> Config:
    return parse_config({"data": {"corpus": "small"}, "model": sizes.model_section()}, source="test")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("nlayers", [1, 3])
def test_log_probabilities_are_those_of_the_original(tied: bool, nlayers: int) -> None:
    model = original(tied=tied, nlayers=nlayers).double()
    sizes, tensors = from_original(model.state_dict())
    assert sizes == OriginalSizes(WORDS, 6, 9 if nlayers > 1 else 7, 7, nlayers, 4, tied)
    ours = build_model(config_of(sizes), WORDS).double().eval()
    put_model_tensors(ours, tensors, source=Path("original"))
    tokens = torch.randint(WORDS, (11, 2))
    with torch.no_grad():
        expected = model(tokens, model.init_hidden(2))[0].view(11, 2, WORDS)
        log_prob = ours.head.log_prob(ours.backbone(tokens, ours.initial_state(2)).hidden)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-10)


def test_there_and_back() -> None:
    for tied in (True, False):
        state = original(tied=tied).state_dict()
        back = to_original(from_original(state)[1])
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_one_softmax() -> None:
    state = awd_lstm_state()
    sizes, tensors = from_original(state)
    assert sizes.components == 0
    assert config_of(sizes).model.head == "softmax"
    model = build_model(config_of(sizes), WORDS).double().eval()
    put_model_tensors(model, tensors, source=Path("original"))
    hidden = torch.randn(5, 6).double()
    logits = hidden @ state["decoder.weight"].double().T + state["decoder.bias"].double()
    torch.testing.assert_close(model.head.log_prob(hidden), logits.log_softmax(-1), rtol=0, atol=1e-10)
    assert to_original(tensors).keys() == state.keys()
    narrow = original(nhidlast=7).state_dict()
    narrow = {name: tensor for name, tensor in narrow.items() if not name.startswith(("prior", "latent"))}
    with pytest.raises(UserError, match="needs both to be the same"):
        from_original(narrow)


def parallel(state: State) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def without_wrappers(state: State) -> State:
    return {name.replace(".module", "").replace("_raw", ""): tensor for name, tensor in state.items()}


def with_dropped_copies(state: State) -> State:
    copies = {name.removesuffix("_raw"): torch.zeros_like(state[name]) for name in state if name.endswith("_raw")}
    return copies | state


def tied_once(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "encoder.weight"}


@pytest.mark.parametrize("spelling", [parallel, without_wrappers, with_dropped_copies, tied_once])
def test_other_spellings(spelling: Callable[[State], State]) -> None:
    state = dict(original().state_dict())
    sizes, tensors = from_original(state)
    other_sizes, others = from_original(spelling(state))
    assert other_sizes == sizes
    assert others.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rnns.0.linear.weight": torch.ones(1)}, "unknown: rnns.0.linear.weight"),
        ({"prior.weight": None, "decoder.bias": None}, "missing: decoder.bias, prior.weight"),
        ({"latent.0.bias": torch.ones(23)}, r"latent.0.bias is \(23,\), expected \(24,\)"),
        ({"rnns.1.module.weight_ih_l0": torch.ones(3)}, r"rnns.1.module.weight_ih_l0 is \(3,\), expected \(36, 9\)"),
        ({"encoder.weight": torch.ones(3)}, "encoder.weight"),
        ({"decoder.bias": torch.ones(WORDS, dtype=torch.int64)}, "decoder.bias is of torch.int64"),
        ({"decoder.bias": torch.full((WORDS,), torch.nan)}, "not numbers: decoder.bias"),
    ],
)
def test_tensors_that_do_not_belong(change: dict[str, Tensor | None], message: str) -> None:
    changed = {name: tensor for name, tensor in (original().state_dict() | change).items() if tensor is not None}
    with pytest.raises(UserError, match=message) as caught:
        from_original(changed)
    assert "\n" not in str(caught.value)


def save(state: State, file: Path) -> Path:
    if file.suffix == ".pt":
        torch.save(state, file)
    elif file.suffix == ".npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        safetensors.torch.save_file(tied_once(state), file)
    return file


@pytest.mark.parametrize("name", ["state.pt", "state.npz", "state.safetensors"])
def test_an_imported_model_evaluates_as_the_original(
    tmp_path: Path, text: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = original()
    file, run = save(model.state_dict(), tmp_path / name), str(tmp_path / "run")
    options = ["--out", run, "--data", str(text), "--set", "dropout.hidden=0.5", "--json"]
    assert run_import(str(file), *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["corpus"]["name"] == "small"
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result["recipe"] is None
    config = RunFolder.open(Path(run)).config
    assert (config.model.num_layers, config.model.num_components, config.dropout.hidden) == (3, 4, 0.5)

    assert main(["evaluate", run, "--split", "valid", "--json"]) == 0
    loss_nats = json.loads(capsys.readouterr().out)["loss_nats"]
    valid = torch.from_numpy(load_corpus(text).tokens["valid"].astype(np.int64))
    assert loss_nats == pytest.approx(textbook.evaluate(model.double(), valid), abs=1e-5)


def test_the_other_commands_work_on_an_imported_run(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = save(original().state_dict(), tmp_path / "state.pt"), str(tmp_path / "run")
    small = [
        "train.batch=4",
        "train.bptt=5",
        "train.valid_batch=2",
        "finetune.epochs=1",
        "finetune.lr=0.1",
        "dynamic.batch=4",
    ]
    settings = [word for setting in small for word in ("--set", setting)]
    assert run_import(str(file), "--out", run, "--data", str(text), *settings) == 0
    assert main(["dynamic-eval", run]) == 0
    assert main(["generate", run, "--words", "5"]) == 0
    assert main(["finetune", run]) == 0
    assert "fine-tuned: best valid perplexity" in capsys.readouterr().out

    # There is no way back to how the imported model was trained, whatever its fine-tuning has recorded.
    before = checksums(Path(run))
    assert main(["train", f"{run}/config.toml", "--data", str(text), "--out", run, "--resume"]) == 1
    assert "has a model but no checkpoint of train to go on from" in capsys.readouterr().err
    assert checksums(Path(run)) == before
    assert not next(ability for ability in examine(Path(run)).abilities if ability.what == "train").possible
    with pytest.raises(UserError, match="exists already; give another folder with --out"):
        run_import(str(file), "--out", run, "--data", str(text))


def test_settings_come_from_the_recipe_of_the_same_sizes(corpora: Path, tmp_path: Path) -> None:
    paper = {"vocab_size": 10_000, "emsize": 280, "nhid": 960, "nhidlast": 620, "nlayers": 3, "n_experts": 15}
    file = save(TextbookModel(**paper).state_dict(), tmp_path / "state.pt")
    run, recipe = import_original(file, tmp_path / "run", data=str(corpora / "penn"))
    assert recipe == "penn"
    assert run.config == read_config(find_recipe("penn"))


def test_an_import_that_the_disk_has_no_room_for_leaves_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UserError("no space left")

    file, out = save(original(vocab_size=WORDS).state_dict(), tmp_path / "state.pt"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_best", full)
        with pytest.raises(UserError, match="no space left"):
            import_original(file, out, data=str(text))
    assert not out.exists()
    import_original(file, out, data=str(text))
    assert RunFolder.open(out).best_model_path("train").exists()


def test_a_corpus_of_another_size_is_refused(tmp_path: Path, text: Path) -> None:
    file, out = save(original(vocab_size=WORDS + 1).state_dict(), tmp_path / "state.pt"), str(tmp_path / "run")
    with pytest.raises(UserError, match=r"the model has 41 words, the corpus small in .* has 40;") as caught:
        run_import(str(file), "--out", out, "--data", str(text))
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="--corpus NAME or --data DIR") as caught:
        run_import(str(file), "--out", out)
    assert caught.value.exit_code == 2
    assert not Path(out).exists()


def test_a_past_decoder_is_not_there_to_be_imported(tmp_path: Path, text: Path) -> None:
    file, out = save(original(vocab_size=WORDS).state_dict(), tmp_path / "state.pt"), tmp_path / "run"
    with pytest.raises(UserError, match=r"train\.past_decode of 0, got 0\.1: .*state\.pt has no past decoder"):
        import_original(file, out, data=str(text), overrides=["train.past_decode=0.1"])
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_and_the_way_out_is_told(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "model.pt"
    torch.save(original(), file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        run_import(str(file), "--out", str(tmp_path / "run"))
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 3
    assert "torch.save(model.state_dict(), 'state.pt')" in str(caught.value)


class Trap:
    """Reading a pickle of this runs a function; here a harmless one."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return sys.intern, ("run",)


@pytest.mark.parametrize("name", ["trap.pt", "trap.npz"])
def test_nothing_in_a_file_is_run(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if file.suffix == ".pt":
        torch.save({"encoder.weight": Trap()}, file)
    else:
        np.savez(file, **{"encoder.weight": np.array([Trap()], dtype=object)})
    with pytest.raises(UserError):
        read_state_dict(file)


@pytest.mark.parametrize("name", ["state.pt", "state.npz", "state.safetensors", "state.txt"])
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_damaged_files(tmp_path: Path, name: str, kept: float) -> None:
    good = tmp_path / "state.safetensors" if name == "state.txt" else tmp_path / name
    content = save(original().state_dict(), good).read_bytes()
    file = tmp_path / name
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError) as caught:
        read_state_dict(file)
    assert "\n" not in str(caught.value)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_state_dict(tmp_path / "absent.pt")
    for content, message in (([1], "got list"), ({"epoch": 3, "model": {}}, "not tensors: epoch, model")):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match=message):
            read_state_dict(tmp_path / "other.pt")
