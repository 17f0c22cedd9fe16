"""The losses that benchmarks compare: ours, the textbook's, and, for one component, those of other libraries.

A candidate takes a ``Case`` and returns a scalar; the sizes are named after what has them.
"""

import argparse
import itertools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.textbook import mixture_log_prob
from highrank import LossOptions, mixture_cross_entropy
from highrank.ops import IMPLEMENTATIONS, triton
from highrank.ops.chunked import block_buffer, new_gradients
from highrank.ops.walk import Needs

__all__ = [
    "CPU_SIZES",
    "GPU_SIZES",
    "REFERENCE",
    "Case",
    "Size",
    "add_sizes",
    "candidates",
    "default_of_ours",
    "make_case",
    "ours_failed",
    "products",
    "size",
    "sizes",
]


@dataclass(frozen=True)
class Size:
    """tokens N, components K, features D, classes V."""

    tokens: int
    components: int
    features: int
    classes: int

    @property
    def operations(self) -> int:
        """Of the three matrix products: logits, gradient of the contexts, gradient of the weight."""
        return 6 * self.tokens * self.components * self.features * self.classes

    @property
    def bytes_of_logits(self) -> int:
        """What a program that stores (N, K, V) in float32 stores once."""
        return 4 * self.tokens * self.components * self.classes


CPU_SIZES = MappingProxyType(
    {
        "penn": Size(840, 15, 280, 10_000),  # 12 columns of 70
        "wikitext-2": Size(350, 15, 300, 33_278),  # 5 columns of 70
        "one-softmax": Size(2048, 1, 768, 32_000),
    }
)
GPU_SIZES = MappingProxyType(
    {
        "penn": Size(840, 15, 280, 10_000),
        "wikitext-2": Size(1050, 15, 300, 33_278),  # 15 columns of 70
        "gpt2": Size(8192, 4, 768, 50_257),
        "llama3": Size(8192, 1, 4096, 128_256),
    }
)

REFERENCE = "highrank reference"  # the definition, which stores everything: for small calls

# On a GPU, beside the default: blocks that stay in the second-level cache (50 MiB of an H100) and some that do not.
BLOCKS_MIB = (24, 96)


def size(words: str) -> Size:
    """Of N,K,D,V; an argument's type."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*){3}", words):
        raise argparse.ArgumentTypeError(
            f"expected tokens,components,features,classes as 840,15,280,10000, got {words!r}"
        )
    return Size(*map(int, words.split(",")))


def add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", nargs="+", default=[], metavar="SIZE", help="penn, wikitext-2, ..., or N,K,D,V (default: all names)"
    )


def sizes(parser: argparse.ArgumentParser, asked_for: list[str], device: str) -> dict[str, Size]:
    """By name, on that device: those that were asked for, or all that have a name."""
    named = CPU_SIZES if device == "cpu" else GPU_SIZES
    try:
        return {words: named[words] if words in named else size(words) for words in asked_for or named}
    except argparse.ArgumentTypeError as error:
        parser.error(f"--sizes: {error}, or of {', '.join(named)}")


@dataclass
class Case:
    """Inputs whose gradients are asked for, in one dtype on one device."""

    context: Tensor  # (N, K, D)
    prior_logits: Tensor  # (N, K)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V)
    target: Tensor  # (N)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.context, self.prior_logits, self.weight, self.bias

    @property
    def bytes_of_gradients(self) -> int:
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)


def make_case(size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Case:
    """Contexts after a tanh, the weight of a fresh model."""
    on: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(seed), "device": device}  # drawn in no time
    n, k, d, v = size.tokens, size.components, size.features, size.classes
    tensors = (
        torch.randn(n, k, d, **on).tanh_(),
        torch.randn(n, k, **on),
        torch.rand(v, d, **on).sub_(0.5).mul_(0.2),
        torch.zeros(v, device=device),
    )
    leaves = (x.to(dtype).requires_grad_() for x in tensors)
    return Case(*leaves, torch.randint(v, (n,), **on))


Loss = Callable[[Case], Tensor]


def candidates(
    size: Size, device: str, dtype: torch.dtype = torch.float32, *, compiled: bool = False
) -> dict[str, Loss]:
    """By name. Losses of one softmax where there is one; those of other libraries where they are installed."""
    found: dict[str, Loss] = {
        f"highrank {name}": ours(name)
        for name in IMPLEMENTATIONS
        if name == "chunked" or (name == "triton" and triton.cannot_run(torch.device(device)) is None)
    }
    if device != "cpu":
        for name, mib in itertools.product(list(found), BLOCKS_MIB):
            found[f"{name}, blocks of {mib} MiB"] = ours(
                name.removeprefix("highrank "), LossOptions(block_bytes=mib << 20)
            )
    found["textbook"] = textbook
    if compiled:
        found["textbook, torch.compile"] = torch.compile(textbook)
    if dtype == torch.float32:
        found["highrank, bfloat16 autocast"] = autocast(ours("auto"))
        found["textbook, bfloat16 autocast"] = autocast(textbook)
    if size.components == 1:
        found |= _one_softmax(device)
    return found


def default_of_ours(names: Collection[str], device: str) -> str | None:
    """Which of these candidates, that work, is what ``implementation="auto"`` comes to on that device; the others of
    ours are no results of ours."""
    order = ("highrank chunked",) if device == "cpu" else ("highrank triton", "highrank chunked")
    return next((name for name in order if name in names), None)


def ours_failed(failed: Iterable[str]) -> bool:
    """Others may: a baseline that runs out of memory is a result."""
    return any(name.startswith("highrank") for name in failed)


def ours(implementation: str, options: LossOptions | None = None) -> Loss:
    def loss(case: Case) -> Tensor:
        context, prior_logits, weight, bias = case.leaves
        return mixture_cross_entropy(
            context, prior_logits, weight, case.target, bias=bias, implementation=implementation, options=options
        )

    return loss


def textbook(case: Case) -> Tensor:
    return F.nll_loss(mixture_log_prob(*case.leaves), case.target)


def autocast(loss: Loss) -> Loss:
    def call(case: Case) -> Tensor:
        with torch.autocast(case.context.device.type, torch.bfloat16):
            return loss(case)

    return call


def _one_softmax(device: str) -> dict[str, Loss]:
    def separate(case: Case) -> Tensor:
        return F.cross_entropy(F.linear(case.context.squeeze(1), case.weight, case.bias), case.target)

    def pytorch(case: Case) -> Tensor:
        loss: Tensor = F.linear_cross_entropy(
            case.context.squeeze(1),
            case.weight,
            case.target,
            linear_bias=case.bias,
            options=torch.nn.LinearCrossEntropyOptions(),  # its default chunking; without options it does not chunk
        )
        return loss

    found: dict[str, Loss] = {"cross_entropy(linear)": separate}
    if hasattr(F, "linear_cross_entropy"):  # PyTorch 2.13
        found["F.linear_cross_entropy"] = pytorch
    if device != "cpu" and find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["liger-kernel"] = lambda case: liger_fused_linear_cross_entropy(
            case.context.squeeze(1), case.weight, case.target, case.bias
        )
    if device != "cpu" and find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = lambda case: linear_cross_entropy(
            case.context.squeeze(1), case.weight, case.target, bias=case.bias
        )
    return found


def products(case: Case) -> Callable[[], object]:
    """The floor: the three matrix products and nothing else, in the blocks of ``chunked``, whose rows are padded, into
    memory that is there."""
    context, weight = case.context.detach(), case.weight.detach()
    logits = block_buffer(context, weight, LossOptions().settings(context, weight))[:, : len(weight)]
    grads = new_gradients(context, weight, Needs(True, False, True, False), weight.dtype)
    context, grad_context, grad_weight = context.flatten(0, 1), grads.context.flatten(0, 1), grads.weight

    def call() -> None:
        for start in range(0, len(context), len(logits)):
            part = context[start : start + len(logits)]
            block = torch.mm(part, weight.t(), out=logits[: len(part)])
            torch.mm(block, weight, out=grad_context[start : start + len(part)])
            torch.addmm(grad_weight, block.t(), part, beta=int(start > 0), out=grad_weight)

    return call
