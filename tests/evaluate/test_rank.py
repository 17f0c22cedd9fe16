"""The rank: matrices whose rank is known, heads at their bound, noise that hides it, and what is not a matrix."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import highrank
from benchmarks.harness import memory_of
from highrank import MixtureOfContexts, MixtureOfSoftmaxes, Softmax
from highrank.errors import UserError
from highrank.evaluate import rank as measured
from highrank.evaluate import read_matrix
from highrank.evaluate.held_out import evenly_spaced
from highrank.evaluate.rank_of_run import log_prob_matrix, rank_bound
from highrank.heads import Head
from highrank.runs.tensors import write_tensors
from tests.parity import small_model
from tests.telling import Telling

MODULE = importlib.import_module("highrank.evaluate.rank")  # highrank.evaluate.rank by name is the function


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_of_rank(rank: int, contexts: int = 60, words: int = 50, scale: float = 1.0) -> Tensor:
    """Log-probabilities: the product has rank - 1, and the normaliser adds one."""
    return torch.log_softmax(scale * normal(contexts, rank - 1) @ normal(rank - 1, words, seed=1), -1)


def numerical_recipes(values: Tensor, shape: tuple[int, ...], epsilon: float) -> float:
    return 0.5 * math.sqrt(shape[0] + shape[1] + 1) * float(values[0]) * epsilon


@pytest.mark.parametrize("rank", [2, 3, 17, 49, 50])
@pytest.mark.parametrize("shape", [(60, 50), (50, 50), (51, 300)])
def test_a_matrix_of_known_rank(rank: int, shape: tuple[int, int]) -> None:
    matrix = matrix_of_rank(rank, *shape)
    before = matrix.clone()
    found = highrank.rank(matrix)
    assert matrix.equal(before)
    assert found.numerical_rank == rank
    torch.testing.assert_close(found.singular_values, torch.linalg.svdvals(matrix), rtol=1e-9, atol=1e-11)
    assert found.threshold == pytest.approx(numerical_recipes(found.singular_values, shape, 2.0**-52), rel=1e-12)
    assert (found.precision, found.dtype, found.device) == ("float64", "float64", "cpu")
    for relative, count in found.ranks.items():
        assert count == int((found.singular_values > relative * found.singular_values[0]).sum())
    p = (found.singular_values / found.singular_values.sum()).numpy()
    assert found.effective_rank == pytest.approx(math.exp(-sum(x * math.log(x) for x in p if x > 0)), rel=1e-9)


def test_the_effective_rank_of_equal_singular_values() -> None:
    """Rows that each favour a word of their own, and a common level: one large value and n - 1 equal ones."""
    n, step = 40, 3.0
    matrix = torch.log_softmax(step * torch.eye(n, dtype=torch.float64), -1)
    values = highrank.rank(matrix).singular_values
    torch.testing.assert_close(values[1:], torch.full((n - 1,), step, dtype=torch.float64))
    p = torch.cat([values[:1], torch.full((n - 1,), step, dtype=torch.float64)])
    p /= p.sum()
    assert highrank.rank(matrix).effective_rank == pytest.approx(float((-p * p.log()).sum().exp()), rel=1e-12)


def test_a_noise_floor_is_told_by_its_precision() -> None:
    """Rounded to float32 the same matrix is of the same rank, at float32's epsilon; so it is when it was float32 once.
    Noise of that size under digits that float32 does not have counts as rank."""
    matrix = matrix_of_rank(12, 400, 300)
    exact, single = highrank.rank(matrix), highrank.rank(matrix.float())
    disguised = highrank.rank(matrix.float().double())
    assert [list(found.ranks) for found in (exact, single)] == [
        [1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10],
        [1e-2, 1e-3, 1e-4],
    ]
    assert (exact.numerical_rank, exact.precision) == (12, "float64")
    assert (single.numerical_rank, single.precision) == (12, "float32")
    assert (disguised.numerical_rank, disguised.precision) == (12, "float32")
    assert single.dtype == "float64"
    floor = float(single.singular_values[12] / single.singular_values[0])
    assert exact.threshold / float(exact.singular_values[0]) < floor < 2.0**-23
    noisy = torch.log_softmax(matrix.float().double(), -1)
    assert highrank.rank(noisy).numerical_rank == 300


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    found = highrank.rank(matrix_of_rank(4, 200, 150).to(dtype))
    assert found.precision == str(dtype).removeprefix("torch.")
    assert found.numerical_rank == 4


@pytest.mark.parametrize("kind", ["float32", "float64", ">f8"])
def test_an_array_is_as_good_as_a_tensor(kind: str) -> None:
    array = matrix_of_rank(5).numpy().astype(kind)
    array.flags.writeable = False
    found, expected = highrank.rank(array), highrank.rank(torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))
    assert found.singular_values.equal(expected.singular_values)
    assert found.precision == expected.precision == ("float32" if kind == "float32" else "float64")


def test_a_graph_is_no_obstacle() -> None:
    logits = normal(20, 10).requires_grad_()
    assert not highrank.rank(torch.log_softmax(logits, -1)).singular_values.requires_grad


@pytest.mark.parametrize(("contexts", "words"), [(2, 2), (7, 30), (200, 9)])
def test_the_mean_divergence_is_that_over_all_pairs(contexts: int, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "BLOCK_BYTES", 8 * words * 3)
    log_p = torch.log_softmax(2 * normal(contexts, words), -1)
    total = 0.0
    for i in range(contexts):
        for j in range(contexts):
            total += float((log_p[i].exp() * (log_p[i] - log_p[j])).sum())
    assert highrank.rank(log_p).mean_kl_nats == pytest.approx(total / (contexts * (contexts - 1)), rel=1e-11)


def test_the_same_context_everywhere_has_no_divergence() -> None:
    found = highrank.rank(torch.log_softmax(normal(1, 30), -1).expand(20, 30))
    assert found.mean_kl_nats == pytest.approx(0, abs=1e-12)
    assert found.numerical_rank == 1


@pytest.mark.parametrize(
    ("rank", "singular_values", "dtype"),
    [(rank, left, torch.float64) for rank, left in [(2, 40), (30, 40), (40, 320), (41, 320), (200, 320)]]
    + [(30, 40, torch.float32), (3, 40, torch.float16)],
)
def test_blocks_and_sketch_change_nothing(
    rank: int, singular_values: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sketch of 40 columns finds ranks that are well below, and knows that it has not found others."""
    matrix = matrix_of_rank(rank, 320, 500, scale=0.3).to(dtype)
    whole = highrank.rank(matrix)
    monkeypatch.setattr(MODULE, "SKETCH_FROM", 1)
    monkeypatch.setattr(MODULE, "BLOCK_BYTES", 8 * 500 * 7)
    display = Telling()
    found = highrank.rank(matrix, display=display)
    assert found.numerical_rank == whole.numerical_rank == rank
    assert len(found.singular_values) == singular_values
    close = max(1e-8, torch.finfo(dtype).eps ** 2)  # of the noise that a sketch leaves out only the square tells
    torch.testing.assert_close(found.singular_values[:rank], whole.singular_values[:rank], rtol=close, atol=1e-10)
    assert found.ranks == whole.ranks
    assert found.effective_rank == pytest.approx(whole.effective_rank, rel=close)
    last = {task: tuple(done) for task, *done in display.shown}
    assert last == dict.fromkeys(("divergence of contexts", "sketch of the matrix"), (320, 320, "contexts"))


def test_a_sketch_is_not_believed_near_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail just above the round-off threshold is outside every sketch of 8 columns, and counted all the same."""
    monkeypatch.setattr(MODULE, "SKETCH_FROM", 1)
    matrix = matrix_of_rank(4, 64, 64)
    level = 20 * highrank.rank(matrix).threshold
    tail = normal(64, 64, seed=7)
    noisy = torch.log_softmax(matrix + level * tail / float(torch.linalg.matrix_norm(tail, 2)), -1)
    found = highrank.rank(noisy)
    full = torch.linalg.svdvals(noisy)
    assert found.numerical_rank == int((full > found.threshold).sum()) > 30


@pytest.mark.parametrize(("contexts", "copies"), [(800, 2), (1500, 3)])
def test_memory_is_announced_and_kept(contexts: int, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "BLOCK_BYTES", 1 << 18)
    matrix = matrix_of_rank(3, contexts, 700).float()
    display = Telling()
    used = memory_of(lambda: highrank.rank(matrix, display=display))
    announced = copies * 8 * contexts * 700 + 4 * (1 << 18)
    assert f"{contexts:,} contexts x 700 words" in display.messages[0]
    assert f"{announced / 2**30:.2f} GiB" in display.messages[0]
    assert used.peak_bytes <= announced


@pytest.mark.parametrize("number", [torch.zeros(1), np.zeros(1)], ids=["tensor", "array"])
def test_too_little_memory_is_said_before_it_is_taken(number: Any) -> None:
    """No computer could copy this one, which an array may be that lies in a file."""
    shape = (10**8, 10**7)
    matrix = number.expand(shape) if isinstance(number, Tensor) else np.broadcast_to(number, shape)
    with pytest.raises(
        UserError, match=r"100,000,000 contexts x 10,000,000 words.* needs .* GiB, but cpu has .*; take"
    ):
        highrank.rank(matrix)


def spoilt(value: float) -> Tensor:
    matrix = matrix_of_rank(4)
    matrix[3, 17] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (spoilt(math.nan), "finite numbers, got nan for context 3, word 17"),
        (spoilt(-math.inf), "finite numbers, got -inf for context 3, word 17"),
        (normal(5), "matrix .* got shape \\(5,\\)"),
        (normal(5, 4, 3), "matrix .* got shape \\(5, 4, 3\\)"),
        (normal(0, 7), "at least 2 x 2, got shape \\(0, 7\\)"),
        (normal(1, 7), "at least 2 x 2, got shape \\(1, 7\\)"),
        (normal(5, 6), "that of row 0 .* take log_softmax of logits"),
        (torch.softmax(normal(5, 6), -1), "that of row 0 .* log of probabilities"),
        (torch.ones(5, 6, dtype=torch.int64), "floating-point numbers, got torch.int64"),
        (np.ones((5, 6), dtype=np.int32), "floating-point numbers, got int32"),
        (np.ones((5, 6), dtype=complex), "floating-point numbers, got complex128"),
    ],
)
def test_what_is_not_a_log_probability_matrix_is_one_clear_line(matrix: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"^log_probs: .*{words}"):
        highrank.rank(matrix)


def heads(bias: bool = True) -> Iterator[tuple[str, Head]]:
    sizes: dict[str, Any] = {"in_features": 9, "num_classes": 80, "context_features": 6, "bias": bias}
    yield "softmax", Softmax(**sizes)
    yield "mixture of contexts", MixtureOfContexts(num_components=4, **sizes)
    yield "one softmax as a mixture", MixtureOfSoftmaxes(num_components=1, **sizes)
    yield "mixture of softmaxes", MixtureOfSoftmaxes(num_components=4, **sizes)


@pytest.mark.parametrize("bias", [True, False])
def test_heads_reach_their_bound_and_only_a_mixture_of_softmaxes_passes_it(bias: bool) -> None:
    """D from the context, one from the bias, one from the normaliser: exactly, in float64."""
    for name, head in heads(bias):
        spread(head, 1.5)
        found = highrank.rank(head.double().log_prob(normal(100, 9)))
        if name == "mixture of softmaxes":
            assert rank_bound(head) is None
            assert found.numerical_rank == 80
            assert found.ranks[1e-6] > 20
        else:
            assert found.numerical_rank == rank_bound(head) == 6 + 1 + bias, name


def test_a_head_in_float32_hides_its_bound_at_the_threshold_of_float64() -> None:
    _, head = next(heads())
    spread(head, 1.5)
    hidden = normal(100, 9).float()
    single = head.log_prob(hidden)
    assert highrank.rank(single).numerical_rank == 8  # at float32's threshold
    assert highrank.rank(torch.log_softmax(single.double(), -1)).numerical_rank == 80
    assert highrank.rank(head.double().log_prob(hidden.double())).numerical_rank == 8


def spread(module: nn.Module, width: float) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-width, width, generator=generator)


def test_the_matrix_of_a_model_is_the_head_in_float64_after_the_text_before() -> None:
    model = small_model(17).float()
    tokens = np.random.default_rng(1).integers(17, size=2500, dtype=np.int32)
    positions = evenly_spaced(40, 2499)
    assert len(set(positions.tolist())) == 40
    matrix = log_prob_matrix(model, tokens, positions)
    assert not matrix.requires_grad
    assert matrix.dtype == torch.float64
    assert next(model.head.parameters()).dtype == torch.float32
    with torch.no_grad():
        everything = torch.from_numpy(tokens[:-1].astype(np.int64)).unsqueeze(1)
        hidden = model.backbone(everything, model.initial_state(1)).hidden[positions, 0]
    torch.testing.assert_close(matrix, model.head.double().log_prob(hidden.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matrix.logsumexp(1), torch.zeros(40, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("count", "total"), [(1, 1), (3, 3), (2, 7), (10_000, 82_429)])
def test_contexts_are_spread_over_the_text(count: int, total: int) -> None:
    places = evenly_spaced(count, total)
    assert places[0] == 0
    assert places[-1] < total
    assert set(np.diff(places)) <= {total // count, total // count + 1}


def test_a_saved_matrix(tmp_path: Path) -> None:
    matrix = matrix_of_rank(4)
    np.save(tmp_path / "m.npy", matrix.numpy())
    write_tensors(tmp_path / "m.safetensors", {"log_probs": matrix})
    for name in ("m.npy", "m.safetensors"):
        assert measured(read_matrix(tmp_path / name)).numerical_rank == 4


def test_a_file_that_is_no_matrix_is_one_clear_line(tmp_path: Path) -> None:
    def refused(name: str, words: str) -> None:
        with pytest.raises(UserError, match=f"{name}: .*{words}"):
            read_matrix(tmp_path / name)

    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    whole = (np.save(tmp_path / "cut.npy", matrix_of_rank(4).numpy()), (tmp_path / "cut.npy").read_bytes())[1]
    (tmp_path / "cut.npy").write_bytes(whole[:-8])
    (tmp_path / "header.npy").write_bytes(whole[:20])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("0.1 0.2\n")
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "matrix.pt").write_bytes(b"")
    (tmp_path / "folder.npy").mkdir()
    np.savez(tmp_path / "archive.npz", matrix_of_rank(4).numpy())
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    write_tensors(tmp_path / "two.safetensors", {"a": normal(2, 2), "b": normal(2, 2)})
    refused("objects.npy", "not a .npy file of numbers")
    for name in ("cut.npy", "header.npy", "empty.npy", "text.npy", "pickle.npy", "archive.npy"):
        refused(name, "not a .npy file of numbers")
    refused("matrix.pt", "expected a .npy or a .safetensors file")
    refused("folder.npy", "a folder")
    refused("missing.npy", "no such file")
    refused("two.safetensors", "expected one tensor, got 2")
