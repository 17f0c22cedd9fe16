"""What only a CUDA device can show: the same numbers as on the CPU, cuDNN's backward, and resume to the same bits."""

import math
from pathlib import Path

import pytest
import torch

from highrank import mixture_cross_entropy
from highrank.data import load_corpus
from highrank.evaluate import DynamicSettings, dynamic_evaluate, evaluate, gradient_statistics
from highrank.runs import RunFolder, build_model, read_config
from highrank.runs.tensors import read_tensors
from highrank.train import train_stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # cuDNN copies weights that are not in one flat buffer, as the dropped ones are, and says so.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
]

RECIPE = Path(__file__).parent / "train" / "tiny.toml"


@pytest.mark.parametrize("components", [1, 3, 15])
def test_the_loss_and_its_gradients_are_those_of_the_cpu(components: int) -> None:
    generator = torch.Generator().manual_seed(components)
    shapes = ((37, components, 20), (37, components), (501, 20), (501,))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    target = torch.randint(501, (37,), generator=generator)
    results = []
    for device in ("cpu", "cuda"):
        context, prior_logits, weight, bias = (t.to(device).requires_grad_() for t in inputs)
        loss = mixture_cross_entropy(context, prior_logits, weight, target.to(device), bias=bias)
        (loss * 1.7).backward()
        results.append([loss, context.grad, prior_logits.grad, weight.grad, bias.grad])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_gpu is not None
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-10, atol=1e-12)


def test_evaluation_static_and_dynamic_agrees_with_the_cpu(small_text: Path) -> None:
    corpus = load_corpus(small_text)
    config = read_config(RECIPE)
    found = {}
    for device in ("cpu", "cuda"):
        model = build_model(config, len(corpus.vocabulary)).double().to(device)
        statistics = gradient_statistics(model, corpus.tokens["train"], batch=10)
        settings = DynamicSettings(lr=0.001)
        found[device] = [
            evaluate(model, corpus.tokens["test"]).loss_nats,
            dynamic_evaluate(model, corpus.tokens["test"][:500], statistics, settings).loss_nats,
        ]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-8)


def test_a_run_on_a_gpu_resumes_to_the_same_bits(small_text: Path, tmp_path: Path) -> None:
    corpus = load_corpus(small_text)
    config = read_config(RECIPE)
    whole = RunFolder.create(tmp_path / "whole", config, corpus.vocabulary, corpus)
    figures = train_stage(whole, "train", corpus, device="cuda")
    assert math.isfinite(figures["valid_loss_nats"])

    cut = RunFolder.create(tmp_path / "cut", config, corpus.vocabulary, corpus)
    checkpoints = sorted((whole.path / "train").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    (cut.path / "train").mkdir()
    checkpoints[0].rename(cut.path / "train" / checkpoints[0].name)  # as if killed in the last epoch
    train_stage(cut, "train", corpus, device="cuda", resume=True)
    last = [sorted((run.path / "train").glob("checkpoint-*"))[-1] / "model.safetensors" for run in (whole, cut)]
    ours, theirs = (read_tensors(path) for path in last)
    assert all(ours[name].equal(theirs[name]) for name in ours)
