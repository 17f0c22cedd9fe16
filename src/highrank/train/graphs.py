"""A pass recorded on a GPU once for each length of a segment, and replayed as a whole.

A pass is some hundreds of small operations. For a GPU to be asked for one takes some microseconds, which is as long as
many of them take there; a recorded pass (a CUDA graph) is asked for at once. It reads and writes the same memory every
time: what differs between two passes of the same length is copied to where the recording looks for it. The masks of the
dropouts are drawn inside, by generators that are placed anew before each pass, as without a recording: same bits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from highrank.data.batches import Segment
from highrank.models import Dropout, LanguageModel, State
from highrank.runs import Config
from highrank.train.one_pass import Pass, one_pass

__all__ = ["RecordedPasses"]

MOST_RECORDED = 128  # lengths; 20,000 updates of the paper's Penn Treebank recipe have 68

Capture = Callable[[Callable[[], None], Sequence[torch.Generator]], Callable[[], object]]


class _Recording(NamedTuple):
    replay: Callable[[], object]
    segment: Segment  # where it looks for its tokens
    loss_sum: Tensor  # where it leaves the loss


class RecordedPasses:
    """Passes of ``model``: the first one of each length as it comes, all later ones by a recording.

    ``capture`` is given what is to be recorded and the generators that it draws from, and returns what replays it.
    All recordings share the carried state and the gradients; the gradients that an update finds are those of one pass.
    """

    def __init__(self, model: LanguageModel, config: Config, capture: Capture | None = None) -> None:
        self._model, self._config = model, config
        self._capture = capture
        self._seen: set[int] = set()
        self._recordings: dict[int, _Recording] = {}
        self._parameters = list(model.parameters())
        self._gradients: list[Tensor] = []
        self._state: State = []

    def __call__(self, segment: Segment, state: State) -> Pass:
        """``one_pass``. The dropouts are placed, and no parameter has a gradient."""
        length = len(segment.tokens)
        if length not in self._recordings:
            if length not in self._seen or len(self._recordings) == MOST_RECORDED:
                self._seen.add(length)  # libraries make themselves ready in a first pass, which is no part of a pass
                return one_pass(self._model, self._config, segment, state)
            self._recordings[length] = self._record(segment, state)
        recording = self._recordings[length]
        recording.segment.tokens.copy_(segment.tokens)
        recording.segment.target.copy_(segment.target)
        for kept, given in zip(self._state, state, strict=True):
            for ours, theirs in zip(kept, given, strict=True):
                if ours is not theirs:
                    ours.copy_(theirs)
        self._give_gradients()
        recording.replay()
        return Pass(self._state, recording.loss_sum)

    def _record(self, segment: Segment, state: State) -> _Recording:
        if not self._state:
            self._state = [(hidden.clone(), cell.clone()) for hidden, cell in state]
            self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        own = Segment(0, segment.tokens.clone(), segment.target.clone())
        loss_sum = torch.zeros((), dtype=torch.float64, device=own.tokens.device)

        def passes() -> None:
            torch._foreach_zero_(self._gradients)
            done = one_pass(self._model, self._config, own, self._state)
            for kept, new in zip(self._state, done.state, strict=True):
                for ours, theirs in zip(kept, new, strict=True):
                    ours.copy_(theirs)
            loss_sum.copy_(done.loss_sum)

        if self._capture is None:  # not before: a stage that has ended is opened on other devices too
            self._capture = _CudaGraphs(self._parameters[0].device)
        self._give_gradients()
        dropouts = (module for module in self._model.modules() if isinstance(module, Dropout) and module.active)
        generators = [dropout.generator for dropout in dropouts if dropout.generator is not None]
        return _Recording(self._capture(passes, generators), own, loss_sum)

    def _give_gradients(self) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient


class _CudaGraphs:
    """A capture. All recordings take the memory of one pool for what lives within a pass: only one runs at a time.

    Their stream is their own, since PyTorch's for all graphs of a process is of whatever device was current first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, passes: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            for generator in generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                passes()
        return graph.replay
