"""The one training loop. Training and fine-tuning are two settings of it; it reads in the order of time."""

import math
import time
from typing import Any, NoReturn

import torch

from highrank.data import Corpus
from highrank.data.batches import segment_length
from highrank.errors import UserError
from highrank.evaluate import evaluate
from highrank.perplexity import perplexity
from highrank.progress import READ_EVERY_S
from highrank.random import derived_seed
from highrank.runs import RunFolder, describe_device
from highrank.runs.device import multiplies_bfloat16
from highrank.runs.records import checkpoint_folders, has_ended
from highrank.runs.tensors import model_tensors
from highrank.train.averaging import averaged_weights, is_stalled
from highrank.train.checks import USUAL_RATE, check_can_train, check_not_begun, training_columns
from highrank.train.interruption import Interrupted, StopRequest, stop_on_signal
from highrank.train.machine import ON_THE_CPU, Machine
from highrank.train.recorder import Recorder
from highrank.train.schedule import rate_share
from highrank.train.stage_settings import StageSettings
from highrank.train.start import first_state, forget_all, last_checkpoint, restore
from highrank.train.state import Position, StageState
from highrank.train.update import update

__all__ = ["train_stage"]

RECORD_EVERY_STEPS = 50
EXPLODED_AFTER_STEPS = 10  # a single segment may be bad at the start of a run


def train_stage(
    run: RunFolder,
    stage: str,
    corpus: Corpus,
    machine: Machine = ON_THE_CPU,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a stage ("train" or "finetune") of ``run`` to its end; with ``resume`` from its last checkpoint, if any.

    Several workers share the micro-batches of each update. Only the first one needs the run's folder.
    Returns best_epoch, valid_loss_nats and valid_perplexity of the best model, and epochs, updates, elapsed_s.
    Raises Interrupted, after saving, if a signal asked to stop; UserError if the loss is lost (nan, or exploding), if
    ``corpus`` is not the text that the run was begun with, or if without ``resume`` the stage has begun already.
    """
    config, device, workers = run.config, machine.device, machine.workers
    run.check_corpus(corpus)  # each worker has read its own
    ended = resume and workers.first(lambda: has_ended(run.path, stage))
    if not ended:
        check_can_train(config, corpus, workers.count, device, stages=(stage,))
    if not resume:
        workers.first(lambda: check_not_begun(run, stage))
    workers.first(lambda: run.remove_leftovers(stage))
    state = first_state(run, stage, corpus, machine)
    checkpoint = workers.first(lambda: last_checkpoint(run, stage, machine.display)) if resume else None
    if checkpoint is None and ended:
        return workers.first(lambda: _recorded_figures(run, stage))  # its checkpoints were removed, to save space
    if checkpoint is None:
        workers.first(lambda: forget_all(run, stage))
    else:
        restore(state, checkpoint, run, stage, machine)
        longer = stage == "train" and state.position.epoch < config.train.epochs  # than it was when it ended
        if state.position.finished and not longer:
            return _figures(state.position)
        where = f"epoch {state.position.epoch}, update {state.position.step}"
        machine.display.message(f"resuming {stage} at {where}")
    first_step = state.position.step + 1
    workers.first(lambda: run.begin_stage(stage))
    workers.first(lambda: run.log(f"{stage}: update {first_step} on, {describe_device(device, workers.count)}"))
    if config.train.precision == "bfloat16" and not multiplies_bfloat16(device):
        machine.display.message(
            "this processor has no instructions for bfloat16: train.precision=float32 is likely to be faster"
        )
    recorder = Recorder(run, stage, machine.display, workers, first_step=first_step)
    try:
        with stop_on_signal() as stop:
            _Stage(recorder, corpus, state, stop, machine.checkpoint_every_s).run_to_the_end()
    finally:
        recorder.close()
        state.recorded = None  # a recording that is only found by the collector might go while another is being made
    return _figures(state.position)


def _figures(position: Position) -> dict[str, Any]:
    assert position.best_loss is not None  # a finished stage has validated
    return {
        "epochs": len(position.history),
        "updates": position.step,
        "best_epoch": position.best_epoch,
        "valid_loss_nats": position.best_loss,
        "valid_perplexity": perplexity(position.best_loss),
        "elapsed_s": position.elapsed_s,
    }


def _recorded_figures(run: RunFolder, stage: str) -> dict[str, Any]:
    """What ``train_stage`` returned when the stage came to its end."""
    figures = "epochs", "updates", "best_epoch", "valid_loss_nats", "valid_perplexity", "elapsed_s"
    return {name: value for name, value in run.results[stage].items() if name in figures}


class _Stage:
    def __init__(
        self, recorder: Recorder, corpus: Corpus, state: StageState, stop: StopRequest, checkpoint_every_s: float
    ) -> None:
        self.recorder, self.state, self.stop, self.checkpoint_every_s = recorder, state, stop, checkpoint_every_s
        self.run, self.stage, self.workers = recorder.run, recorder.stage, recorder.workers
        self.config = self.run.config
        self.settings = StageSettings.of(self.config, self.stage)
        self.seed = derived_seed(self.config.train.seed, self.stage)
        self.columns = training_columns(self.config, corpus)
        self.valid = corpus.tokens["valid"]
        self.device = next(state.model.parameters()).device
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # since the last reading
        self.norm_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.saved_at = self.told_at = time.monotonic()

    def run_to_the_end(self) -> None:
        if self.state.position.finished:  # with fewer epochs than there are to be now
            self.state.position.finished = False
            self.workers.first(lambda: self.run.forget_results_of(self.stage))
            self.go_on()
        if self.settings.starts_trained and self.state.position.best_loss is None:
            self.validate()
        while not self.state.position.finished:
            self.train_epoch()
            loss = self.validate()
            self.decide(loss)
            self.save()
            [signal_number] = self.workers.largest(self.stop.signal_number)
            self.stop_if_asked(signal_number)

    def train_epoch(self) -> None:
        """From where the state stands to the end of the text."""
        position, train = self.state.position, self.config.train
        columns = self.columns.turned(self.seed, position.epoch) if train.partial_shuffle else self.columns
        self.state.model.train()
        self.state.share(self.workers)  # the same bits, though the workers' processors may round differently
        self.tell_time()
        read_at = time.monotonic()
        # As the original, leave out a last segment of one prediction.
        while position.start < self.columns.length - 2:
            length = segment_length(self.seed, position.step, train.bptt, train.max_length_delta)
            lr = self.rate()
            done = update(
                self.state,
                columns,
                self.config,
                seed=self.seed,
                lr=lr,
                length=length,
                workers=self.workers,
            )
            self.loss_sum += done.loss_sum
            self.norm_sum += done.norm
            position.add_step(done.steps, done.steps * train.batch)
            now = time.monotonic()

            record = position.step % RECORD_EVERY_STEPS == 0
            # What one worker's clock or signal asks for, all do after the same step.
            signal_number, save, read = self.workers.largest(
                self.stop.signal_number, now - self.saved_at > self.checkpoint_every_s, now - read_at > READ_EVERY_S
            )
            if record or save or read or signal_number:
                read_at = now
                self.read_losses()
                position.interval_s += self.tell_time()
                self.recorder.progress(position, self.columns, self.settings.epochs)
            if record:
                self.recorder.interval(position, lr)
                position.start_interval()
            if save or signal_number:
                self.save()
                self.stop_if_asked(signal_number)
                self.tell_time()
        self.read_losses()
        position.interval_s += self.tell_time()

    def tell_time(self) -> float:
        """The seconds since the last call, which the position then has too: it is told before it is written down."""
        now = time.monotonic()
        passed_s, self.told_at = now - self.told_at, now
        self.state.position.elapsed_s += passed_s
        return passed_s

    def rate(self) -> float:
        """Of the next update, if its segment has ``train.bptt`` steps."""
        position, settings = self.state.position, self.settings
        done = (position.epoch - 1 + position.start / self.columns.length) / settings.epochs
        return settings.lr * rate_share(settings.schedule, settings.warmup, done)

    def stop_if_asked(self, signal_number: int) -> None:
        """To be called right after saving."""
        if signal_number:
            self.recorder.message(f"saved {self.stage} at update {self.state.position.step}; go on with --resume")
            raise Interrupted(signal_number)

    def read_losses(self) -> None:
        """Move what the devices summed up into the position, and stop if the loss is lost."""
        position = self.state.position
        self.workers.add_up([self.loss_sum])
        loss_sum, norm_sum = self.loss_sum.item(), self.norm_sum.item()
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        position.add_losses(loss_sum, norm_sum)
        self.workers.first(lambda: self.check_losses(loss_sum, norm_sum))

    def check_losses(self, loss_sum: float, norm_sum: float) -> None:
        position = self.state.position
        uniform = math.log(self.state.model.vocab_size)
        if not (math.isfinite(loss_sum) and math.isfinite(norm_sum)):
            reason = "the loss or its gradient is not a number"
        elif position.interval_steps >= EXPLODED_AFTER_STEPS and position.interval_mean > 2 * uniform:
            reason = f"the loss has exploded: {position.interval_mean:.1f} nats a token, guessing costs {uniform:.1f}"
        else:
            return
        self.give_up(reason)

    def give_up(self, reason: str) -> NoReturn:
        position = self.state.position
        good = checkpoint_folders(self.run.stage_folder(self.stage))
        where = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
        lower = self.settings.lr / 2
        if not good:  # half of what lost it at once may be far too much still
            lower = min(lower, USUAL_RATE[self.config.train.optimizer])
        how = f"a lower learning rate (--set {self.stage}.lr={lower:g})"
        if self.stage == "train":  # the only stage that may change it
            how += " or a smaller train.clip"
        anew = ", or begin anew in another folder (--out)" if self.stage == "train" and not good else ""
        raise UserError(
            f"{self.stage} stopped at update {position.step}: {reason}; {where}. The run {self.run.path} stays: go on "
            f"with --resume and {how}{anew}"
        )

    def validate(self) -> float:
        """Loss of the (averaged) weights on the validation text."""
        state = self.state
        with averaged_weights(state.average, state.model):
            evaluation = evaluate(
                state.model,
                self.valid,
                batch=self.config.train.valid_batch,
                what=f"{self.stage}: validation",
                display=self.recorder.display,
                workers=self.workers,
            )
            if not math.isfinite(evaluation.loss_nats):  # by the last update, whose loss no other one has shown
                self.workers.first(lambda: self.give_up("the validation loss is not a number"))
            self.tell_time()
            self.recorder.validation(state.position, evaluation)
            if state.position.best_loss is None or evaluation.loss_nats < state.position.best_loss:
                state.position.best_loss = evaluation.loss_nats
                state.position.best_epoch = state.position.epoch if state.position.step else 0
                self.workers.first(lambda: self.run.save_best(self.stage, model_tensors(state.model)))
        return evaluation.loss_nats

    def decide(self, loss: float) -> None:
        """Stop, or go on."""
        position = self.state.position
        position.history.append(loss)
        if position.epoch >= self.settings.epochs:
            position.finished = True
        else:
            self.go_on()

    def go_on(self) -> None:
        """Begin the next epoch, with averaged weights perhaps, or stop where that is of no use."""
        position, settings = self.state.position, self.settings
        *earlier, loss = position.history
        stalled = is_stalled(earlier, loss, settings.nonmono)
        due = settings.average_from and position.epoch + 1 >= settings.average_from
        if stalled and settings.starts_trained:
            position.finished = True
            self.recorder.message(f"{self.stage}: the validation loss has stalled, done")
            return
        if (stalled or due) and not position.averaging:
            self.state.start_averaging()
            self.recorder.message(f"{self.stage}: averaging the weights from epoch {position.epoch + 1} on")
        self.state.start_epoch()

    def save(self) -> None:
        self.state.share(self.workers)  # the first one saves the hidden states of all
        if not self.state.is_finite():
            self.workers.first(lambda: self.give_up("a weight is not a number"))
        self.tell_time()
        self.workers.first(lambda: self.state.save(self.run.stage_folder(self.stage)))
        self.saved_at = time.monotonic()
