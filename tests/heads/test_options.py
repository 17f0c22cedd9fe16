"""What a head is told about its loss reaches the loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import memory_of
from highrank.functional import LossOptions
from highrank.heads import Head, MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from highrank.ops import Settings
from tests.implementations import recorded_settings

HEADS: dict[str, Callable[..., Head]] = {
    "softmax": Softmax,
    "mixture of contexts": lambda h, v, **k: MixtureOfContexts(h, v, num_components=4, **k),
    "mixture of softmaxes": lambda h, v, **k: MixtureOfSoftmaxes(h, v, num_components=4, **k),
}
every_head = pytest.mark.parametrize("name", HEADS)


def case(name: str, options: LossOptions | None, tokens: int = 40, classes: int = 30) -> tuple[Head, Tensor, Tensor]:
    """A head whose components differ, hidden states and targets: the same ones for any options."""
    torch.manual_seed(0)
    head = HEADS[name](8, classes, options=options)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head, torch.randn(tokens, 8), torch.randint(classes, (tokens,))


@every_head
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_head_tells_its_loss_every_option(name: str, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded_settings(monkeypatch)
    told = {"block_bytes": 4321, "accumulation_dtype": torch.float64, "min_posterior": 0.25}
    head, hidden, target = case(name, LossOptions(**told))
    head(hidden, target, reduction=reduction).sum().backward()
    assert seen == [Settings(**told)] * (2 if reduction == "none" else 1)  # which walks again in backward


@every_head
def test_the_block_of_a_head_is_as_large_as_it_is_told(name: str) -> None:
    def peaks(options: LossOptions | None) -> tuple[int, int]:
        head, hidden, target = case(name, options, tokens=400, classes=2000)
        loss = memory_of(lambda: head(hidden, target).backward())
        return loss.largest_bytes, memory_of(lambda: head.log_prob(hidden[:2])).peak_bytes

    largest, of_log_prob = peaks(None)  # one block holds all tokens
    small, small_of_log_prob = peaks(LossOptions(block_bytes=8000))  # one row of 2000
    assert largest >= 400 * 8000
    assert small < largest / 5
    # Of two tokens there is the result, and one block of both or two blocks of one.
    components = 4 if name == "mixture of softmaxes" else 1
    assert small_of_log_prob <= of_log_prob - components * 8000


@every_head
def test_the_most_probable_classes_do_not_need_all_log_probabilities_at_once(name: str) -> None:
    head, hidden, _ = case(name, LossOptions(block_bytes=10 * 8000), tokens=400, classes=2000)
    assert head.predict(hidden).equal(head.log_prob(hidden).argmax(-1))
    contexts = 400 * 4 * 8 * 4
    assert memory_of(lambda: head.predict(hidden)).peak_bytes < 5 * 10 * 8000 + 6 * contexts < 400 * 8000 / 2


@every_head
def test_a_head_sums_in_the_dtype_it_is_told(name: str) -> None:
    for options, dtype in ((None, torch.float32), (LossOptions(accumulation_dtype=torch.float64), torch.float64)):
        head, hidden, target = case(name, options)
        assert head(hidden, target).dtype == dtype
        assert head.log_prob(hidden).dtype == dtype


def test_a_coarse_posterior_filter_shows_in_the_gradients() -> None:
    found = {}
    for min_posterior in (0.0, 0.95):  # so coarse that leaving rows out pays at this width
        head, hidden, target = case("mixture of softmaxes", LossOptions(min_posterior=min_posterior))
        loss = head(hidden, target)
        loss.backward()
        assert head.weight.grad is not None
        found[min_posterior] = (loss.item(), head.weight.grad)
    (exact_loss, exact), (loss_value, filtered) = found[0.0], found[0.95]
    assert loss_value == exact_loss
    assert (filtered - exact).norm() > 0.01 * exact.norm()


@every_head
def test_what_is_no_options_is_refused_at_once(name: str) -> None:
    with pytest.raises(TypeError, match=r"options: expected LossOptions, got \{'block_bytes': 1\}"):
        HEADS[name](8, 30, options={"block_bytes": 1})
