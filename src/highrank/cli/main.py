"""The command line: ``highrank COMMAND``. Errors of users are one line; heavy imports wait until a command runs."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import highrank.cli.environment  # noqa: F401 - before anything loads PyTorch
from highrank import __version__
from highrank.cli import (
    cache_eval,
    compare,
    components,
    data,
    doctor,
    dynamic_eval,
    evaluate,
    explore,
    finetune,
    generate,
    import_model,
    rank,
    report,
    run,
    runs,
    score,
    train,
)
from highrank.cli.launch import AFTER_LOSS, STOPPED, ignore_interrupts, launch, launched, leave, restarted
from highrank.cli.launch import report as print_error
from highrank.errors import UserError
from highrank.launcher import check_launcher, launcher_number

__all__ = ["main"]

COMMANDS = (
    data,
    train,
    finetune,
    evaluate,
    dynamic_eval,
    cache_eval,
    rank,
    components,
    report,
    explore,
    score,
    generate,
    run,
    import_model,
    runs,
    compare,
    doctor,
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="highrank",
        description="High-rank language models: train, fine-tune and dynamically evaluate a mixture of softmaxes.",
    )
    parser.add_argument("--version", action="version", version=f"highrank {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 wrong use, 128 + n stopped by signal n after saving."""
    argv = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a word or a path that its encoding lacks is spelt out
            stream.reconfigure(errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
    try:
        check_launcher()
    except UserError as error:
        print(f"highrank: {error}", file=sys.stderr)  # not as a worker: what says which one may be wrong
        return error.exit_code
    alone = getattr(arguments, "dry_run", False)  # which looks at the workers that were asked for, and starts none
    if getattr(arguments, "workers", 1) > 1 and not alone and not launched():
        try:
            return launch(
                ["-m", "highrank", *argv], arguments.workers, after_loss=getattr(arguments, "after_loss", AFTER_LOSS)
            )
        except KeyboardInterrupt:  # before the workers were started
            return _stopped()
    if restarted() and hasattr(arguments, "resume"):
        arguments.resume = True  # the launcher says the same words again, and means: go on
    return leave(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    """The command, with what can go wrong as one line."""
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()  # what cannot be written is told here, not at the interpreter's end
        return code
    except UserError as error:
        print_error(error)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        remedies = [arguments.less_memory] if hasattr(arguments, "less_memory") else []
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported here
            said = f"the GPU is out of memory; {' or '.join([*remedies, 'take --device cpu'])}"
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            said = "; ".join(["not enough memory", *remedies])
        else:
            raise
        print(f"highrank: {said}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has gone
        _drop_what_cannot_be_written()
        return 1
    except OSError as error:
        print(f"highrank: {error}", file=sys.stderr)
        _drop_what_cannot_be_written()
        return 1
    except KeyboardInterrupt:
        return _stopped()


def _drop_what_cannot_be_written() -> None:
    """What is left in a stream, on which the interpreter's end would fail once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stopped() -> int:
    ignore_interrupts()
    if not launched() or launcher_number("RANK") == 0:  # of several workers one says it
        print("highrank: stopped", file=sys.stderr)
    return STOPPED


if __name__ == "__main__":
    sys.exit(main())
