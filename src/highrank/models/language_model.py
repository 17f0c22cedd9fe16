"""A language model: a backbone that turns tokens into hidden states, and a head that turns these into a loss."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from highrank.heads import Head, Softmax
from highrank.models.awd_lstm import AWDLSTM, State
from highrank.models.dropout import Dropout, WeightDropout

__all__ = ["LanguageModel", "LanguageModelOutput", "detached", "evaluating", "without_dropout"]


class LanguageModelOutput(NamedTuple):
    """loss: mean nats a token (or (T, B) for reduction none); hidden and raw (T, B, H) after and before the output
    dropout, for the activation penalties; state: to carry on with."""

    loss: Tensor
    hidden: Tensor
    raw: Tensor
    state: State


class LanguageModel(nn.Module):
    """backbone and head, with one word embedding for both if ``tied``.

    ``past_decoder`` has the same output embedding, and is for training (``train.past_decode``); prediction needs none.
    """

    def __init__(
        self, backbone: AWDLSTM, head: Head, *, tied: bool = True, past_decoder: Softmax | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        if tied:
            head.tie(backbone.embedding)
        self.past_decoder = past_decoder
        if past_decoder is not None:
            past_decoder.tie(head.weight)

    @property
    def vocab_size(self) -> int:
        return self.head.num_classes

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned; tied ones count once. Without the past decoder's, which predict nothing."""
        named = self.named_parameters()
        return sum(parameter.numel() for name, parameter in named if not name.startswith("past_decoder."))

    def initial_state(self, batch: int) -> State:
        return self.backbone.initial_state(batch)

    def forward(
        self,
        tokens: Tensor,
        target: Tensor,
        state: Sequence[tuple[Tensor, Tensor]],
        *,
        reduction: str = "mean",
    ) -> LanguageModelOutput:
        """Predict ``target`` (T, B) from ``tokens`` (T, B) and the state after the text before them."""
        return self.predict(self.backbone.embed(tokens), target, state, reduction=reduction)

    def predict(
        self,
        embedded: Tensor,
        target: Tensor,
        state: Sequence[tuple[Tensor, Tensor]],
        *,
        reduction: str = "mean",
    ) -> LanguageModelOutput:
        """``forward`` from the embeddings (T, B, D) of the tokens on."""
        output = self.backbone.run(embedded, state)
        loss = self.head(output.hidden, target, reduction=reduction)
        return LanguageModelOutput(loss, output.hidden, output.raw, output.state)


def detached(state: State) -> State:
    """The state, cut off from the graph that computed it."""
    return [(hidden.detach(), cell.detach()) for hidden, cell in state]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; after, every module has the mode that it had."""
    with _modes_kept(model):
        model.eval()
        yield


@contextmanager
def without_dropout(model: nn.Module, *, keep_weight_dropout: bool = False) -> Iterator[None]:
    """Train mode with every dropout off: cuDNN has no LSTM backward in evaluation mode (pytorch#10006).

    ``keep_weight_dropout`` leaves DropConnect on: the defect of the 2018 port in dynamic evaluation, to measure it.
    """
    with _modes_kept(model):
        model.train()
        for module in model.modules():
            if isinstance(module, Dropout) and not (keep_weight_dropout and isinstance(module, WeightDropout)):
                module.eval()
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
