"""What the page can do with a run: predict the next word, adapt to a text, go back. Nothing here knows of the page.

The trained model is shared and never moves. A session (a browser tab) that adapts gets a copy of its own.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from highrank.data import Corpus
from highrank.data.batches import SHORTEST_TRAINING_COLUMN, Columns
from highrank.data.typed import Reading, read_text
from highrank.errors import UserError
from highrank.evaluate import (
    Adaptation,
    DynamicSettings,
    GradientStatistics,
    Prediction,
    gradient_statistics,
    known_statistics,
    predict_next,
    scored_settings,
)
from highrank.models import LanguageModel
from highrank.perplexity import perplexity
from highrank.progress import SILENT, Display, UntilStopped
from highrank.runs import RunFolder

__all__ = ["Adapted", "Change", "Explorer", "View"]

LONGEST_CONTEXT = 500  # words; the last ones count
LONGEST_TEXT = 2000
MOST_ADAPTED = 4  # sessions with a copy of the model; the one that was used longest ago gives its own back
# A pass over all of a large corpus would keep a class waiting: a part estimates the same sums.
STATISTICS_TOKENS = 100_000
CHANGES = 10


class Change(NamedTuple):
    """Probability of a word before and after adapting."""

    word: int
    before: float
    after: float


class View(NamedTuple):
    """The next word after a context. ``adapted`` and ``changes`` (largest difference of probability first) only in a
    session that has adapted."""

    reading: Reading
    trained: Prediction
    adapted: Prediction | None
    changes: list[Change]


class Adapted(NamedTuple):
    """A text that was read while learning from it.

    Losses are nats of each predicted word of ``reading`` (N): ``before`` by the trained weights, ``learning`` by the
    weights of its moment, before they learnt of it. ``statistics`` says on what the step sizes rest.
    """

    reading: Reading
    before: Tensor
    learning: Tensor
    settings: DynamicSettings
    statistics: str
    model: LanguageModel

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the text, by the trained weights and while learning."""
        before, learning = (perplexity(losses.mean().item()) for losses in (self.before, self.learning))
        return before, learning


class _Statistics(NamedTuple):
    values: GradientStatistics
    said: str


class Explorer:
    """A trained model of ``run`` and what its page asks of it; sessions are named by any string.

    ``corpus`` finds the training text when an adaptation needs statistics that the run does not have.
    Nothing is written into the run.
    """

    def __init__(
        self,
        run: RunFolder,
        corpus: Callable[[], Corpus],
        *,
        stage: str | None = None,
        device: torch.device | str = "cpu",
        statistics_tokens: int = STATISTICS_TOKENS,
    ) -> None:
        self.run = run
        self.vocabulary = run.vocabulary
        self._stamp, self.model = run.stamped_model(stage, device=device)  # training may go on beside the page
        self.stage = self._stamp.stage
        self.settings = scored_settings(run, self.stage)
        self._corpus = corpus
        self._statistics_tokens = statistics_tokens
        self._statistics: _Statistics | None = None
        self._adapted: OrderedDict[str, Adapted] = OrderedDict()
        self._stopping = threading.Event()
        self._predicting = threading.Lock()  # of models and sessions: a prediction switches a model's dropouts
        self._measuring = threading.Lock()  # one pass over the training text is enough

    def close(self) -> None:
        """Let work in other threads end soon, with a UserError."""
        self._stopping.set()

    def adapted(self, session: str) -> Adapted | None:
        """What the session adapted to, unless it went back, or its copy of the model was given to another session."""
        return self._adapted.get(session)

    def predict(self, session: str, context: str, *, top: int = 10, temperature: float = 1.0) -> View:
        """The next word after ``context``, by the trained weights and, if the session has adapted, by its own.

        Both read the context from an empty state, so that what differs is the weights alone.
        """
        reading = read_text(context, self.vocabulary, longest=LONGEST_CONTEXT, keep="last")
        if not reading.tokens:
            raise UserError("this vocabulary has no <eos> to begin with: type a word that it has")
        with self._predicting:
            trained = self._predict(self.model, reading, top, temperature)
            session_model = self._adapted.get(session)
            if session_model is None:
                return View(reading, trained, None, [])
            self._adapted.move_to_end(session)
            adapted = self._predict(session_model.model, reading, top, temperature)
        return View(reading, trained, adapted, _changes(trained, adapted))

    def adapt(self, session: str, text: str, *, display: Display = SILENT) -> Adapted:
        """Dynamic evaluation on ``text`` from the trained weights on; the session keeps what the weights became.

        Raises UserError if there is no word in the text, if the training text is needed and missing, or if the loss
        is lost.
        """
        reading = read_text(text.strip(), self.vocabulary, longest=LONGEST_TEXT)
        if len(reading.tokens) < 2:
            raise UserError("paste a text first: there is no word to learn from")
        statistics = self._statistics_for(display)
        with self._predicting:
            model = copy.deepcopy(self.model)
        adapted = _adapt(model, reading, statistics, self.settings, self._unless_stopped(display))
        with self._predicting:
            self._adapted[session] = adapted
            self._adapted.move_to_end(session)
            while len(self._adapted) > MOST_ADAPTED:
                self._adapted.popitem(last=False)
        return adapted

    def restore(self, session: str) -> None:
        """Back to the trained weights."""
        with self._predicting:
            self._adapted.pop(session, None)

    def _predict(self, model: LanguageModel, reading: Reading, top: int, temperature: float) -> Prediction:
        device = next(model.parameters()).device
        tokens = torch.tensor(reading.tokens, device=device).unsqueeze(1)
        with torch.no_grad():
            hidden = model.backbone(tokens, model.initial_state(1)).hidden[-1, 0]
        return predict_next(model, hidden, top=top, temperature=temperature, keep_full=True)

    def _statistics_for(self, display: Display) -> _Statistics:
        """Those of the run if it has them, else from the beginning of the training text."""
        with self._measuring:
            if self._statistics is None:
                self._statistics = self._measure(self._unless_stopped(display))
            return self._statistics

    def _measure(self, display: Display) -> _Statistics:
        corpus = self._corpus()
        known = known_statistics(self.run, self._stamp, self.model, corpus, self.settings, display=display)
        if known is not None:
            return _Statistics(known, "a pass over all of the training text, kept in the run")
        tokens = corpus.tokens["train"]
        part = tokens[: self._statistics_tokens]
        batch = min(self.run.config.dynamic.batch, max(1, len(part) // SHORTEST_TRAINING_COLUMN))
        display.progress("gradient statistics", 0, len(part))
        with self._predicting:
            model = copy.deepcopy(self.model)
        values = gradient_statistics(model, part, batch=batch, bptt=self.settings.bptt, display=display)
        if len(part) == len(tokens):
            return _Statistics(values, "a pass over all of the training text")
        # The root of a sum grows with the text: what the whole text would give, if it is like its beginning.
        factor = len(tokens) / len(part)
        squares = {name: square * factor for name, square in values.squares.items()}
        return _Statistics(
            GradientStatistics(squares, round(values.segments * factor)),
            f"a pass over the first {len(part):,} of {len(tokens):,} words of the training text, scaled to all of it "
            f"(highrank dynamic-eval {self.run.path} makes the exact ones)",
        )

    def _unless_stopped(self, display: Display) -> Display:
        return UntilStopped(display, self._stopping, UserError("the page was closed"))


def _adapt(
    model: LanguageModel, reading: Reading, statistics: _Statistics, settings: DynamicSettings, display: Display
) -> Adapted:
    device = next(model.parameters()).device
    columns = Columns(np.asarray(reading.tokens, dtype=np.int32), 1)
    before, learning = [], []
    state = model.initial_state(1)
    display.progress("adapting", 0, columns.predicted_tokens, unit="words")
    with Adaptation(model, statistics.values, settings) as adaptation:
        trained = copy.deepcopy(model)
        for segment in columns.segments(settings.bptt):
            _, tokens, target = segment.to(device)
            with torch.no_grad():
                fixed = trained(tokens, target, state, reduction="none")
                moving = model(tokens, target, adaptation.state, reduction="none")
            state = fixed.state
            before.append(fixed.loss.squeeze(1))
            learning.append(moving.loss.squeeze(1))
            adaptation.step(tokens, target)
            adaptation.loss_nats()
            display.progress("adapting", segment.start + len(tokens), columns.predicted_tokens, unit="words")
        result = copy.deepcopy(model).eval()  # what it learnt: the trained weights come back now
    if not all(weight.isfinite().all() for weight in result.parameters()):  # by the last step
        raise UserError(f"the learning rate of the dynamic evaluation, {settings.lr:g}, is too high for this text")
    return Adapted(reading, torch.cat(before).cpu(), torch.cat(learning).cpu(), settings, statistics.said, result)


def _changes(trained: Prediction, adapted: Prediction) -> list[Change]:
    assert trained.full is not None
    assert adapted.full is not None
    before, after = trained.full.exp(), adapted.full.exp()
    words = (after - before).abs().topk(min(CHANGES, len(before))).indices
    return [Change(int(word), float(before[word]), float(after[word])) for word in words]
