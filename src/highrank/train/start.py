"""What a stage starts from: a fresh model, a trained one, or its own last checkpoint."""

from torch import Tensor

from highrank.data import Corpus, word_counts
from highrank.errors import UserError
from highrank.files import file_sha256
from highrank.progress import Display
from highrank.runs import Checkpoint, RunFolder, build_model, latest_checkpoint
from highrank.runs.tensors import put_model_tensors, read_tensors
from highrank.train.checks import check_can_go_on, check_trained
from highrank.train.embedding_norms import set_norms_from_counts
from highrank.train.machine import Machine
from highrank.train.stage_settings import StageSettings
from highrank.train.state import Position, StageState

__all__ = ["first_state", "forget_all", "last_checkpoint", "restore"]


def first_state(run: RunFolder, stage: str, corpus: Corpus, machine: Machine) -> StageState:
    """That of a stage before its first update, on every worker."""
    config = run.config
    settings = StageSettings.of(config, stage)
    model = build_model(config, len(run.vocabulary))
    started_from = ""
    if stage == "finetune":
        tensors, started_from = machine.workers.first(lambda: _trained_model(run))
        put_model_tensors(model, tensors, source=run.best_model_path("train"))
    elif config.model.embedding_init == "log-counts":
        set_norms_from_counts(model, word_counts(corpus))
    state = StageState(model.to(machine.device), config, started_from=started_from)
    state.position.lr = settings.lr
    if settings.averaging:
        state.start_averaging()
    return state


def _trained_model(run: RunFolder) -> tuple[dict[str, Tensor], str]:
    """The tensors that fine-tuning starts from, and the hash of their file."""
    check_trained(run)
    source = run.best_model_path("train")
    return read_tensors(source), file_sha256(source)


def last_checkpoint(run: RunFolder, stage: str, display: Display) -> Checkpoint | None:
    """The one to go on from, if there is one. Raises UserError if there should be."""
    check_can_go_on(run, stage)
    return latest_checkpoint(run.stage_folder(stage), notice=display.message)


def _forget_what_comes_again(run: RunFolder, stage: str, position: Position) -> None:
    if position.best_loss is not None:
        run.check_best(stage)
    run.forget_metrics_after(stage, position.step, len(position.history))


def forget_all(run: RunFolder, stage: str) -> None:
    """Forget what is left of a stage that begins anew, because its folder was removed or it was killed before it
    saved."""
    if (run.path / "metrics.jsonl").exists():  # else it comes with the first record
        run.forget_metrics_after(stage, 0, 0)
    run.forget_results_of(stage)


def restore(state: StageState, checkpoint: Checkpoint, run: RunFolder, stage: str, machine: Machine) -> None:
    """Put the state, fresh from ``first_state``, where the checkpoint stands, and the run's records too.

    Raises UserError if fine-tuning began from another trained model.
    """
    started_from, lr = state.position.started_from, state.position.lr
    state.restore(checkpoint)
    if state.position.started_from != started_from:
        raise UserError(
            f"{run.stage_folder(stage)}: began from another trained model than {run.best_model_path('train')} is now "
            "(training went on since); remove that folder to fine-tune anew"
        )
    if state.position.lr not in (None, lr):
        state.position.late_lr = None  # of the rate that was to be left behind
    state.position.lr = lr
    machine.workers.first(lambda: _forget_what_comes_again(run, stage, state.position))
