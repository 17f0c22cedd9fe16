"""What every head promises: one interface, one loss, and the rank that its name says."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import highrank
from benchmarks.harness import memory_of
from highrank import LossOptions
from highrank.heads import GrownMixture, Head, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from tests.implementations import every_reduction
from tests.parity import default_dtype

MakeHead = Callable[..., Head]

HEADS: dict[str, MakeHead] = {
    "softmax": Softmax,
    "softmax of a projection": lambda h, v, context_features=4, **k: Softmax(
        h, v, context_features=context_features, **k
    ),
    "mixture of contexts": lambda h, v, **k: MixtureOfContexts(h, v, num_components=3, **k),
    "mixture of softmaxes": lambda h, v, **k: MixtureOfSoftmaxes(h, v, num_components=3, **k),
    "grown mixture of softmaxes": lambda h, v, bias=True, device=None, dtype=None, **k: GrownMixture(
        nn.Linear(h, v, bias=bias, device=device, dtype=dtype), num_components=3, **k
    ),
}
every_head = pytest.mark.parametrize("name", HEADS)
every_head_from_the_start = pytest.mark.parametrize("name", [name for name in HEADS if "grown" not in name])


def make(name: str, in_features: int = 6, num_classes: int = 9, *, seed: int = 0, **settings: object) -> Head:
    """A float64 head with weights large enough that every term counts."""
    with default_dtype(torch.float64):
        head = HEADS[name](in_features, num_classes, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    return head


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets(*shape: int, classes: int = 9) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(2))


def definition(head: Head, hidden: Tensor) -> Tensor:
    """Log-probabilities (N, V) of hidden (N, H) from the formula in the head's docstring, one row at a time."""
    weights = dict(head.named_parameters())
    bias = weights.get("bias", torch.zeros(head.num_classes, dtype=torch.float64))
    rows = []
    for h in hidden:
        if isinstance(head, Softmax):
            contexts = [
                h
                if head.projection is None
                else torch.tanh(weights["projection.weight"] @ h + weights["projection.bias"])
            ]
            prior = torch.ones(1, dtype=torch.float64)
        elif isinstance(head, GrownMixture):
            contexts = [
                h + torch.tanh(shift) for shift in (weights["shift.weight"] @ h + weights["shift.bias"]).chunk(3)
            ]
            prior = torch.softmax(weights["prior.weight"] @ h, 0)
        else:
            contexts = list(torch.tanh(weights["projection.weight"] @ h + weights["projection.bias"]).chunk(3))
            prior = torch.softmax(weights["prior.weight"] @ h, 0)
        if isinstance(head, MixtureOfContexts):
            contexts = [sum(pi * context for pi, context in zip(prior, contexts, strict=True))]
            prior = torch.ones(1, dtype=torch.float64)
        probability = sum(
            pi * torch.softmax(weights["weight"] @ context + bias, 0)
            for pi, context in zip(prior, contexts, strict=True)
        )
        rows.append(torch.log(probability))
    return torch.stack(rows).detach()


@every_head
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("context_features", [None, 5])
def test_log_prob_is_the_definition(name: str, bias: bool, context_features: int | None) -> None:
    if name in ("softmax", "grown mixture of softmaxes"):
        context_features = None  # with it, the first is the next one; the second has none
    settings = {} if context_features is None else {"context_features": context_features}
    head = make(name, bias=bias, **settings)
    hidden = normal(7, 6)
    torch.testing.assert_close(head.log_prob(hidden), definition(head, hidden), rtol=1e-12, atol=1e-12)
    assert (head.bias is not None) == bias


@every_head
def test_the_interface(name: str) -> None:
    head, hidden, target = make(name), normal(20, 2, 6), targets(20, 2)
    log_prob = head.log_prob(hidden)
    assert log_prob.shape == (20, 2, 9)
    assert log_prob.requires_grad
    assert not head.predict(hidden).requires_grad
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(20, 2, dtype=torch.float64))
    predicted = head.predict(hidden)
    assert predicted.shape == (20, 2)
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, log_prob.argmax(-1))
    assert predicted.unique().numel() > 1
    assert head(hidden, target).shape == ()
    assert head(hidden, target, reduction="none").shape == (20, 2)
    assert head(hidden[0, 0], target[0, 0]).shape == ()
    assert head.log_prob(hidden[0, 0]).shape == (9,)
    torch.testing.assert_close(head.log_prob(hidden[0, 0]), log_prob[0, 0])
    head.options = LossOptions(block_bytes=3 * 9 * 8)  # three tokens at a time, and then one
    assert torch.equal(head.predict(hidden), predicted)
    assert head.predict(hidden[:0]).shape == (0, 2)
    assert head.predict(hidden[0, 0]) == predicted[0, 0]


@every_head
@every_reduction
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_the_loss_is_the_nll_of_log_prob(name: str, reduction: str, ignore_index: int) -> None:
    head, hidden, target = make(name), normal(5, 2, 6), targets(5, 2)
    target[1, 1] = ignore_index
    assert (target == ignore_index).sum() < 10
    loss = head(hidden, target, reduction=reduction, ignore_index=ignore_index)
    log_prob = head.log_prob(hidden)
    expected = nn.functional.nll_loss(
        log_prob.flatten(0, 1), target.flatten(), reduction=reduction, ignore_index=ignore_index
    )
    torch.testing.assert_close(loss.detach(), expected.view(loss.shape), rtol=1e-12, atol=1e-13)


@every_head
def test_every_gradient_is_that_of_the_definition(name: str) -> None:
    head, hidden, target = make(name), normal(5, 6).requires_grad_(), targets(5)
    parameters = {"hidden": hidden} | dict(head.named_parameters())
    head(hidden, target).backward()
    ours = {key: value.grad.clone() for key, value in parameters.items() if value.grad is not None}
    assert ours.keys() == parameters.keys()
    for key, parameter in parameters.items():  # central differences of the definition, one random direction each
        direction = normal(*parameter.shape, seed=5)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
                values.append(-definition(head, hidden.detach()).gather(1, target.unsqueeze(1)).mean().item())
                parameter.sub_(direction, alpha=sign * 1e-5)
        slope = (values[0] - values[1]) / 2e-5
        assert (ours[key] * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8), key


def rank_of(head: Head) -> int:
    singular = torch.linalg.svdvals(head.log_prob(normal(60, 6)))
    return int((singular > 1e-11 * singular[0]).sum())


def test_the_rank_that_the_names_promise() -> None:
    """The rank is at most D + 2 unless the softmaxes are mixed; D + 1 without a bias."""
    assert rank_of(make("softmax", num_classes=70)) == 6 + 2
    assert rank_of(make("softmax", num_classes=70, bias=False)) == 6 + 1
    assert rank_of(make("softmax of a projection", num_classes=70)) == 4 + 2
    assert rank_of(make("mixture of contexts", num_classes=70, context_features=4)) == 4 + 2
    assert rank_of(make("mixture of softmaxes", num_classes=70, context_features=4)) > 50
    assert rank_of(make("grown mixture of softmaxes", num_classes=70)) > 50


@pytest.mark.parametrize("mixture", [MixtureOfSoftmaxes, MixtureOfContexts])
def test_one_component_is_a_softmax_of_a_projection(mixture: type[Head]) -> None:
    softmax = make("softmax of a projection", context_features=4)
    with default_dtype(torch.float64):
        one = mixture(6, 9, num_components=1, context_features=4)  # type: ignore[call-arg]
    weights = one.state_dict()
    one.load_state_dict({**softmax.state_dict(), "prior.weight": weights["prior.weight"]})
    hidden, target = normal(8, 6), targets(8)
    torch.testing.assert_close(one.log_prob(hidden), softmax.log_prob(hidden), rtol=1e-13, atol=1e-13)
    one(hidden, target).backward()
    softmax(hidden, target).backward()
    ours = dict(one.named_parameters())
    for name, parameter in softmax.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-11, atol=1e-13)


def test_the_mixtures_have_the_same_parameters() -> None:
    names = [
        {n: p.shape for n, p in make(name).named_parameters()}
        for name in ("mixture of contexts", "mixture of softmaxes")
    ]
    assert names[0] == names[1]


@every_head
def test_tie_shares_the_embedding(name: str) -> None:
    head = make(name, context_features=6) if name == "softmax of a projection" else make(name)
    embedding = nn.Parameter(normal(9, 6))
    head.tie(embedding)
    assert head.weight is embedding
    assert dict(head.named_parameters())["weight"] is embedding
    head(normal(3, 6), targets(3)).backward()
    assert embedding.grad is not None
    before = head.log_prob(normal(3, 6))
    with torch.no_grad():
        embedding.mul_(2)
    assert not torch.allclose(head.log_prob(normal(3, 6)), before)
    for shape in ((9, 5), (8, 6), (6, 9)):
        with pytest.raises(ValueError, match=rf"embedding: expected shape \(9, 6\), got \({shape[0]}, {shape[1]}\)"):
            head.tie(nn.Parameter(torch.zeros(shape)))


@pytest.mark.parametrize(
    ("make_head", "size"),
    [
        (make_head, size)
        for make_head in (Softmax, MixtureOfContexts, MixtureOfSoftmaxes)
        for size in ("in_features", "num_classes", "context_features")
    ]
    + [(make_head, "num_components") for make_head in (MixtureOfContexts, MixtureOfSoftmaxes)],
)
@pytest.mark.parametrize("value", [0, -1])
def test_an_invalid_size_is_named(make_head: MakeHead, size: str, value: int) -> None:
    sizes = {"in_features": 4, "num_classes": 5}
    if make_head is not Softmax:
        sizes["num_components"] = 2
    with pytest.raises(ValueError, match=f"{size}: expected a whole number from 1 on, got {value}"):
        make_head(**{**sizes, size: value})


@every_head
def test_a_hidden_state_and_a_target_that_do_not_fit_are_refused(name: str) -> None:
    head = make(name)
    with pytest.raises(ValueError, match="target: expected values from 0 to 8"):
        head(normal(3, 6), torch.tensor([0, 9, 1]))
    with pytest.raises(ValueError, match=r"target: expected shape \(3,\)"):
        head(normal(3, 6), targets(4))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, context: Tensor) -> Tensor:
        self.seen.append(tuple(context.shape))
        return context * 0.5


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("softmax of a projection", (5, 2, 1, 4)),
        ("mixture of contexts", (5, 2, 3, 4)),
        ("mixture of softmaxes", (5, 2, 3, 4)),
    ],
)
def test_the_context_dropout_sees_the_contexts(name: str, shape: tuple[int, ...]) -> None:
    dropout = Halves()
    plain, dropped = make(name, context_features=4), make(name, context_features=4, context_dropout=dropout)
    hidden, target = normal(5, 2, 6), targets(5, 2)
    loss = dropped(hidden, target)
    assert dropout.seen == [shape]
    with torch.no_grad():
        plain.weight.mul_(0.5)  # half the context is half the weight
    torch.testing.assert_close(loss, plain(hidden, target), rtol=1e-12, atol=0)


@every_head_from_the_start
def test_initial_values(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name](6, 900)
    assert 0.09 < head.weight.abs().max() <= 0.1
    assert abs(head.weight.mean()) < 0.005
    assert head.bias is not None
    assert not head.bias.any()
    if isinstance(head, MixtureOfContexts | MixtureOfSoftmaxes):
        assert head.prior.bias is None


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    exact, rounded = make(name), make(name).to(dtype)
    hidden, target = normal(20, 6), targets(20)
    loss = rounded(hidden.to(dtype), target)
    loss.backward()
    assert loss.item() == pytest.approx(exact(hidden, target).item(), rel=1e-5 if dtype == torch.float32 else 2e-2)
    assert all(p.grad is not None and p.grad.dtype == dtype for n, p in rounded.named_parameters())


@every_head
def test_autocast(name: str) -> None:
    head, hidden, target = make(name).float(), normal(20, 6).float(), targets(20)
    expected = head(hidden, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(hidden, target)
        log_prob = head.log_prob(hidden)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    assert log_prob.exp().sum(-1).tolist() == pytest.approx([1.0] * 20, rel=3e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())


@every_head
@every_reduction
def test_no_head_stores_tokens_times_components_times_classes(name: str, reduction: str) -> None:
    """Neither in training nor in log_prob, at the default size of a block."""
    components, classes = 3 if "mixture of softmaxes" in name else 1, 5000
    tokens = 6000 // components
    head = HEADS[name](8, classes)
    hidden, target = normal(tokens, 8).float().requires_grad_(), targets(tokens, classes=classes)
    whole = tokens * components * classes * 4
    block = LossOptions().block_bytes_for("cpu", classes, 8)
    assert block < whole / 2

    def train() -> None:
        loss = head(hidden, target, reduction=reduction)
        loss.backward(torch.rand_like(loss))

    rows = math.prod((tokens, components, 8, 4))
    parameters = sum(p.numel() * 4 for p in head.parameters())
    used = memory_of(train)
    assert used.peak_bytes <= block + 12 * rows + 3 * parameters
    if reduction == "none":
        result = tokens * classes * 4
        with torch.no_grad():
            used = memory_of(lambda: head.log_prob(hidden))
        assert used.peak_bytes <= result + 4 * block + 4 * rows
        assert used.largest_bytes <= max(block, result)


@pytest.mark.parametrize(("dropout", "tensors"), [(None, 3), (nn.Dropout(0.1), 5)], ids=["plain", "dropout"])
def test_how_many_tensors_of_contexts_a_mixture_holds(dropout: nn.Module | None, tensors: int) -> None:
    """As docs/head.md says: beside them the block and the gradients of the weights are small here."""
    head = MixtureOfSoftmaxes(64, 9, num_components=4, context_dropout=dropout)
    hidden, target = normal(4000, 64).float().requires_grad_(), targets(4000)
    used = memory_of(lambda: head(hidden, target).backward())
    assert used.peak_bytes == pytest.approx(tensors * 4000 * 4 * 64 * 4, rel=0.15)


def test_the_public_names() -> None:
    assert highrank.MixtureOfSoftmaxes is MixtureOfSoftmaxes
    assert highrank.MixtureOfContexts is MixtureOfContexts
    assert highrank.Softmax is Softmax
    assert highrank.GrownMixture is GrownMixture
    for head in (Softmax, MixtureOfContexts, MixtureOfSoftmaxes, GrownMixture):
        assert issubclass(head, Head)


@every_head_from_the_start
def test_a_head_made_on_no_device_starts_when_its_memory_is_there(name: str) -> None:
    torch.manual_seed(5)
    wanted = HEADS[name](6, 9).state_dict()
    with torch.device("meta"):
        head = HEADS[name](6, 9)
    head.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(5)
    for module in head.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(head.state_dict()[key].equal(value) for key, value in wanted.items())


def test_a_head_is_made_on_a_device_and_in_a_dtype() -> None:
    for name, make_head in HEADS.items():
        width = {} if "grown" in name else {"context_features": 6}
        head = make_head(6, 9, device="meta", dtype=torch.bfloat16, **width)
        assert {(p.device.type, p.dtype) for p in head.parameters()} == {("meta", torch.bfloat16)}


def test_a_head_says_what_it_is() -> None:
    head = MixtureOfSoftmaxes(6, 9, num_components=2, context_features=4, bias=False)
    assert "in_features=6, num_classes=9, num_components=2, context_features=4, bias=False" in repr(head)
    head.weight = nn.Parameter(torch.cat([head.weight, head.weight[:2]]))  # a vocabulary that has grown
    assert "num_classes=11" in repr(head)
    assert head.log_prob(torch.zeros(3, 6)).shape == (3, 11)


@every_head
def test_the_definition_can_be_asked_for(name: str) -> None:
    head, hidden, target = make(name), normal(5, 6).requires_grad_(), targets(5)
    fused = head(hidden, target)
    head.implementation = "reference"
    loss = head(hidden, target)
    torch.testing.assert_close(loss, fused)
    [gradient] = torch.autograd.grad(loss, hidden, create_graph=True)
    assert torch.autograd.grad(gradient.pow(2).sum(), hidden)[0].isfinite().all()  # which the fused loss refuses
    [gradient] = torch.autograd.grad(head.log_prob(hidden)[:, 0].sum(), hidden, create_graph=True)
    assert torch.autograd.grad(gradient.pow(2).sum(), hidden)[0].isfinite().all()


@every_head
def test_what_does_not_fit_is_named(name: str) -> None:
    head = make(name)
    with pytest.raises(ValueError, match=r"hidden: expected shape \(\*, 6\), got \(5, 7\)"):
        head(normal(5, 7), targets(5))
    with pytest.raises(ValueError, match=r"hidden: expected shape \(\*, 6\), got \(5, 7\)"):
        head.log_prob(normal(5, 7))
    with pytest.raises(TypeError, match=r"embedding: expected a parameter, as embedding\.weight, got Embedding"):
        head.tie(torch.nn.Embedding(9, 4))


def test_arguments_that_make_no_head_are_named() -> None:
    with pytest.raises(TypeError, match=r"context_dropout: expected a module, as nn\.Dropout\(0\.1\), got 0\.1"):
        MixtureOfSoftmaxes(6, 9, num_components=2, context_dropout=0.1)
    with pytest.raises(ValueError, match=r"num_components: expected a whole number from 1 on, got 2\.0"):
        MixtureOfSoftmaxes(6, 9, num_components=2.0)
    with pytest.raises(ValueError, match="num_components: expected a whole number from 1 on, got 0"):
        GrownMixture(nn.Linear(6, 9), num_components=0)
    with pytest.raises(TypeError, match=r"linear: expected a linear layer, as model\.lm_head, got Embedding"):
        GrownMixture(nn.Embedding(9, 6), num_components=2)
    head = MixtureOfSoftmaxes(6, 9, num_components=2)
    head.options = {"block_bytes": 1}  # what a head is made with is looked at when it is made
    with pytest.raises(TypeError, match=r"options: expected LossOptions, got \{'block_bytes': 1\}"):
        head(torch.randn(5, 6), targets(5))
    head, hidden = MixtureOfSoftmaxes(6, 9, num_components=2), torch.randn(5, 6)
    with pytest.raises(ValueError, match="ignore_index: expected a whole number, got None"):
        head(hidden, targets(5), ignore_index=None)
    torch.testing.assert_close(
        head(hidden, targets(5), ignore_index=np.int64(3)), head(hidden, targets(5), ignore_index=3)
    )


def test_public_modules_are_there_without_an_import_of_their_own() -> None:
    program = "import highrank; highrank.heads.Head, highrank.functional.MixtureStatistics, highrank.evaluate"
    subprocess.run([sys.executable, "-c", program], check=True)
