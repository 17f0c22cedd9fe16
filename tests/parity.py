"""What every implementation of the mixture's loss must hold: problems, the one table of margins, shared assertions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.textbook import TextbookModel
from highrank.functional import LossOptions, mixture_cross_entropy
from highrank.heads import MixtureOfSoftmaxes
from highrank.models import AWDLSTM, LanguageModel

INPUTS = ("context", "prior_logits", "weight", "bias")
REDUCTIONS = ("none", "sum", "mean")

# How much larger our error may be than that of the naive program in the same dtype, as a share of the largest true
# value: two programs round in another order, and the gradient of a prior logit is a difference of near numbers.
MARGIN = {torch.float64: 5e-14, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@dataclass
class Problem:
    """Inputs of ``mixture_cross_entropy`` and a random upstream gradient for each reduction."""

    context: Tensor
    prior_logits: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    ignore_index: int = -100
    upstream: dict[str, Tensor] = field(default_factory=dict)
    label_smoothing: float = 0.0

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same numbers, rounded to ``dtype`` where it is shorter."""
        context, prior_logits, weight = (x.to(dtype) for x in (self.context, self.prior_logits, self.weight))
        bias = None if self.bias is None else self.bias.to(dtype)
        upstream = {name: x.to(dtype) for name, x in self.upstream.items()}
        inputs = (context, prior_logits, weight, bias, self.target)
        return Problem(*inputs, self.ignore_index, upstream, self.label_smoothing)

    def on(self, device: str) -> "Problem":
        """The same numbers there."""
        bias = None if self.bias is None else self.bias.to(device)
        inputs = (self.context.to(device), self.prior_logits.to(device), self.weight.to(device), bias)
        upstream = {name: x.to(device) for name, x in self.upstream.items()}
        return Problem(*inputs, self.target.to(device), self.ignore_index, upstream, self.label_smoothing)

    def loss(self, **settings: object) -> Tensor:
        return mixture_cross_entropy(
            self.context,
            self.prior_logits,
            self.weight,
            self.target,
            bias=self.bias,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            **settings,  # type: ignore[arg-type]
        )


class Answer(NamedTuple):
    """A loss and, by input, its gradients for the problem's upstream gradient; None where there is none."""

    loss: Tensor
    gradients: dict[str, Tensor | None]


def make_problem(
    *leading: int,
    components: int = 3,
    features: int = 5,
    classes: int = 7,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    scale: float = 1.0,
    bias: bool = True,
) -> Problem:
    """``scale`` is about the standard deviation of the logits."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    problem = Problem(
        context=normal(*leading, components, features) * scale / features**0.5,
        prior_logits=normal(*leading, components),
        weight=normal(classes, features),
        bias=normal(classes) if bias else None,
        target=torch.randint(classes, leading, generator=g),
        upstream={"none": normal(*leading), "sum": normal().abs() + 0.3, "mean": -normal().abs() - 0.3},
    )
    return problem.to(dtype)


def assert_the_mean_has_no_tilt(implementation: str, device: str) -> None:
    """1 / 350 in bfloat16 is 0.13% too large, and all gradients of a mean over 350 tokens would be."""
    problem = make_problem(350, components=2, features=16, classes=40, dtype=torch.bfloat16)
    problem.upstream = {"sum": torch.tensor(1.0), "mean": torch.tensor(1.0)}
    problem = problem.on(device)
    whole, mean = (solve(problem, implementation, reduction).gradients["weight"] for reduction in ("sum", "mean"))
    assert whole is not None
    assert mean is not None
    ratio = 350 * mean.double().abs().sum() / whole.double().abs().sum()
    assert abs(float(torch.tensor(1 / 350).bfloat16()) * 350 - 1) > 1e-3
    assert abs(ratio - 1) < 3e-4


def assert_wrong_targets_are_nan(implementation: str, device: str) -> None:
    """Where they cannot be looked at: their losses and gradients, and no others."""
    problem = make_problem(6).on(device)
    problem.target[[1, 4]] = torch.tensor([7, -1], device=device)
    context = problem.context.requires_grad_()
    loss = problem.loss(implementation=implementation, reduction="none")
    assert loss.isnan().tolist() == [False, True, False, False, True, False]
    for reduction in ("none", "sum"):
        loss = problem.loss(implementation=implementation, reduction=reduction)
        [gradient] = torch.autograd.grad(loss.sum(), context)
        assert gradient.isnan().flatten(1).all(1).tolist() == [False, True, False, False, True, False]
        assert gradient[[0, 2, 3, 5]].isfinite().all()


class Size(NamedTuple):
    """``scale`` is about the standard deviation of the logits."""

    tokens: int
    components: int
    features: int
    classes: int
    scale: float

    def problem(self, dtype: torch.dtype) -> Problem:
        """One of this size, in which a token does not count."""
        problem = make_problem(
            self.tokens,
            components=self.components,
            features=self.features,
            classes=self.classes,
            scale=self.scale,
            dtype=dtype,
            seed=self.tokens,
        )
        problem.target[2] = problem.ignore_index
        return problem


# Where every implementation is compared with the naive program, on every device.
SIZES = (
    Size(31, 3, 17, 101, 1.0),
    Size(64, 15, 32, 1000, 0.1),
    Size(40, 5, 64, 300, 10.0),
    Size(9, 2, 8, 12_000, 3.0),
    Size(50, 1, 32, 400, 2.0),
    Size(30, 4, 19, 1003, 1.0),  # rows of the block and of the weight's gradient that need rounding up
)


def solve(
    problem: Problem,
    implementation: str,
    reduction: str,
    *,
    needs: tuple[str, ...] = INPUTS,
    options: LossOptions | None = None,
) -> Answer:
    """Loss and gradients; only the inputs in ``needs`` require a gradient."""
    leaves: dict[str, Tensor] = {}
    for name in INPUTS:
        value = getattr(problem, name)
        if value is not None:
            leaves[name] = value.detach().requires_grad_(name in needs)
    loss = mixture_cross_entropy(
        leaves["context"],
        leaves["prior_logits"],
        leaves["weight"],
        problem.target,
        bias=leaves.get("bias"),
        ignore_index=problem.ignore_index,
        label_smoothing=problem.label_smoothing,
        reduction=reduction,
        implementation=implementation,
        options=options,
    )
    if any(leaf.requires_grad for leaf in leaves.values()):
        loss.backward(problem.upstream[reduction].to(loss.dtype))
    return Answer(loss.detach(), {name: leaf.grad for name, leaf in leaves.items()})


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [subset for size in range(len(names) + 1) for subset in combinations(names, size)]


def assert_same(
    ours: Answer, expected: Answer, *, rtol: float = 1e-12, atol: float = 1e-13, equal_nan: bool = False
) -> None:
    """The same loss and gradients, and None in the same places."""
    torch.testing.assert_close(ours.loss, expected.loss, rtol=rtol, atol=atol, equal_nan=equal_nan)
    assert ours.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        got = ours.gradients[name]
        assert (got is None) == (gradient is None), f"{name}: the gradient is {got}, expected {gradient}"
        if got is not None and gradient is not None:
            torch.testing.assert_close(
                got, gradient, rtol=rtol, atol=atol, equal_nan=equal_nan, msg=lambda m, n=name: f"gradient of {n}: {m}"
            )


def error(value: Tensor, truth: Tensor) -> float:
    """The largest difference, as a share of the largest true value."""
    assert value.shape == truth.shape
    if not truth.numel():
        return 0.0
    return float((value.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def assert_no_worse_than_naive(
    problem: Problem, implementation: str, reduction: str, options: LossOptions | None = None
) -> None:
    """Truth in float64; the definition and the implementation in the problem's dtype; one table of margins."""
    dtype = problem.context.dtype
    truth = solve(problem.to(torch.float64), "reference", reduction)
    naive = solve(problem, "reference", reduction)
    ours = solve(problem, implementation, reduction, options=options)
    margin = MARGIN[dtype]
    if implementation == "triton" and dtype == torch.bfloat16 and problem.context.device.type == "cpu":
        margin *= 2  # Triton's interpreter cuts off where a GPU rounds
    pairs = {"loss": (ours.loss, naive.loss, truth.loss)}
    for name, true in truth.gradients.items():
        mine, simple = ours.gradients[name], naive.gradients[name]
        assert mine is not None
        assert mine.dtype == dtype, f"gradient of {name}: {mine.dtype} for an input of {dtype}"
        pairs[name] = (mine, simple, true)  # type: ignore[assignment]
    for name, (mine, simple, true) in pairs.items():
        allowed = error(simple, true) + margin
        assert error(mine, true) <= allowed, f"{name} {reduction}: error {error(mine, true):.3g}, allowed {allowed:.3g}"


# Two models of the same mathematics -----------------------------------------------------------------------------------


def textbook_names(layers: int) -> dict[str, str]:
    """Our name of every parameter, by its name in the textbook."""
    names = {
        "encoder.weight": "backbone.embedding",
        "prior.weight": "head.prior.weight",
        "latent.0.weight": "head.projection.weight",
        "latent.0.bias": "head.projection.bias",
        "decoder.bias": "head.bias",
    }
    for layer in range(layers):
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            raw = "_raw" if name == "weight_hh_l0" else ""
            names[f"rnns.{layer}.module.{name}{raw}"] = f"backbone.layers.{layer}.lstm.{name}"
    return names


def textbook_twin(model: LanguageModel) -> TextbookModel:
    """The textbook's model of the same sizes with the same weights, without dropout, in the same dtype."""
    backbone, head = model.backbone, model.head
    assert isinstance(head, MixtureOfSoftmaxes)
    twin = TextbookModel(
        head.num_classes,
        emsize=head.context_features,
        nhid=backbone.layer_sizes[0],
        nhidlast=backbone.layer_sizes[-1],
        nlayers=len(backbone.layer_sizes),
        n_experts=head.num_components,
        **dict.fromkeys(("dropout", "dropouth", "dropouti", "dropoute", "dropoutl", "wdrop"), 0.0),
    ).to(head.weight.dtype)
    ours = dict(model.named_parameters())
    theirs = dict(twin.named_parameters())
    names = textbook_names(len(backbone.layer_sizes))
    assert names.keys() == theirs.keys()
    assert set(names.values()) == ours.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[names[name]])
    return twin


def small_model(vocab_size: int = 17, *, dropout: float = 0.0, seed: int = 0, spread: float = 0.4) -> LanguageModel:
    """A float64 AWD-LSTM with a mixture of softmaxes whose weights are large enough that every term counts."""
    with default_dtype(torch.float64):
        backbone = AWDLSTM(
            vocab_size,
            embedding_features=6,
            hidden_features=9,
            out_features=7,
            num_layers=3,
            embedding_dropout=dropout,
            input_dropout=dropout,
            hidden_dropout=dropout,
            output_dropout=dropout,
            weight_dropout=dropout,
        )
        model = LanguageModel(backbone, MixtureOfSoftmaxes(7, vocab_size, num_components=4, context_features=6))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-spread, spread, generator=generator)
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """By name; every parameter must have one."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values()), f"no gradient: {found}"
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
