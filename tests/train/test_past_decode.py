"""Past decode regularisation: its loss by the formula of its docstring, in a pass, and in a run of all stages."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.processes import RECIPE, here, one_line
from highrank.data.batches import Segment
from highrank.models import LanguageModel, State, seed_dropouts
from highrank.runs import Config, RunFolder, build_model, parameter_count, parse_config
from highrank.runs.tensors import model_tensors, read_tensors
from highrank.train.one_pass import one_pass
from highrank.train.past_decode import predict_and_decode_past

WORDS, STEPS, BATCH = 11, 4, 2
LEARNED = {"past_decoder.bias", "past_decoder.projection.weight", "past_decoder.projection.bias"}


def small(weight: float, **model: object) -> Config:
    sizes = {"embedding_features": 5, "hidden_features": 6, "last_hidden_features": 7, "num_layers": 1}
    return parse_config(
        {
            "data": {"corpus": "text"},
            "model": {"num_components": 3, **sizes, **model},
            "train": {"past_decode": weight, "batch": BATCH},
        },
        source="test",
    )


def by_the_formula(model: LanguageModel, segment: Segment, state: State) -> tuple[Tensor, Tensor]:
    weight, past = model.head.weight, model.past_decoder
    assert past is not None
    assert past.projection is not None
    context, prior_logits = model.head.components(model.backbone(segment.tokens, state).hidden)
    each = torch.softmax(context @ weight.T + model.head.bias, dim=-1)
    p = (torch.softmax(prior_logits, dim=-1).unsqueeze(-1) * each).sum(dim=-2)
    guess = torch.tanh((p @ weight) @ past.projection.weight.T + past.projection.bias)
    loss = nn.functional.nll_loss(p.log().flatten(0, 1), segment.target.flatten())
    guessed = nn.functional.cross_entropy((guess @ weight.T + past.bias).flatten(0, 1), segment.tokens.flatten())
    return loss, guessed


def some_words() -> Segment:
    generator = torch.Generator().manual_seed(1)
    return Segment(0, *(torch.randint(WORDS, (STEPS, BATCH), generator=generator) for _ in range(2)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["softmax", "mixture-of-contexts", "mixture-of-softmaxes"])
def test_losses_and_gradients_are_those_of_the_formula(head: str, tied: bool) -> None:
    model = build_model(small(0.3, head=head, tied=tied), WORDS).double().eval()
    segment, state = some_words(), model.initial_state(BATCH)
    output, guessed = predict_and_decode_past(model, segment, state)
    expected = by_the_formula(model, segment, state)
    torch.testing.assert_close((output.loss, guessed), expected)
    torch.testing.assert_close(output, model(segment.tokens, segment.target, state))
    named = dict(model.named_parameters())
    assert named.keys() >= LEARNED
    assert "past_decoder.weight" not in named, "it is the head's"
    found, wanted = (
        torch.autograd.grad(loss + 0.3 * guessed, list(named.values()), materialize_grads=True)
        for loss, guessed in ((output.loss, guessed), expected)
    )
    for name, ours, theirs in zip(named, found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
    assert all(theirs.any() for theirs in wanted if theirs.dim() > 1), "the formula depends on every matrix"


def test_a_model_without_one_is_refused() -> None:
    model = build_model(small(0.0), WORDS)
    with pytest.raises(ValueError, match="past_decoder"):
        predict_and_decode_past(model, some_words(), model.initial_state(BATCH))


def test_all_else_begins_as_without_it() -> None:
    ours, plain = (model_tensors(build_model(small(weight), WORDS)) for weight in (0.3, 0.0))
    assert ours.keys() - plain.keys() == LEARNED
    assert all(ours[name].equal(plain[name]) for name in plain)


def test_a_pass_adds_its_gradient_at_its_weight_and_tells_the_loss_alone() -> None:
    segment = some_words()
    gradients, losses = [], []
    for weight in (0.3, 0.6, 1e-30):
        config = small(weight)
        model = build_model(config, WORDS).double()
        seed_dropouts(model, 1, 0, 0)  # its dropouts are on
        done = one_pass(model, config, segment, [(h.double(), c.double()) for h, c in model.initial_state(BATCH)])
        losses.append(done.loss_sum)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert losses[0] == losses[1] == losses[2]
    once, twice, none = gradients
    for name in none:
        assert once[name] is not None
        torch.testing.assert_close(twice[name] - none[name], 2 * (once[name] - none[name]))
        assert (once[name] - none[name]).any(), name


def test_a_run_of_all_stages_learns_it_and_predicts_without_it(small_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("data.train_tokens=1500", "data.heldout_tokens=300", "train.epochs=1", "finetune.epochs=1")
    options = [word for setting in (*settings, "train.past_decode=0.5") for word in ("--set", setting)]
    train = ["train", RECIPE, *options, "--data", small_text, "--out", run, "--device", "cpu"]
    for command in (
        train,
        ["finetune", run, "--device", "cpu"],
        ["evaluate", run, "--device", "cpu"],
        ["dynamic-eval", run, "--split", "valid", "--device", "cpu"],
        ["rank", run, "--contexts", "30", "--device", "cpu"],
        ["doctor", run],
    ):
        done = here(*command)
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    folder = RunFolder.open(run)
    began = model_tensors(build_model(folder.config, len(folder.vocabulary)))
    for stage in ("train", "finetune"):
        learned = read_tensors(folder.best_model_path(stage))
        assert learned.keys() == began.keys()
        assert not any(learned[name].equal(began[name]) for name in LEARNED)
    loaded = folder.load_model()
    assert not LEARNED & dict(loaded.named_parameters()).keys()
    [listed] = json.loads(here("runs", tmp_path, "--json").stdout)["runs"]
    assert listed["parameters"] == parameter_count(folder.config, len(folder.vocabulary)) == loaded.num_parameters
    one_line(here(*train, "--resume", "--set", "train.past_decode=0"), "past_decode", codes=(1, 2))
