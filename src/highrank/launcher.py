"""What the launcher of several workers tells each of them, in variables of its environment."""

import os

from highrank.errors import UserError

__all__ = ["check_launcher", "launcher_number"]

UNTOLD = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "TORCHELASTIC_RESTART_COUNT": 0}


def launcher_number(name: str) -> int:
    """The number in the variable ``name``; that of a process without a launcher where it is not set, or empty.

    Raises UserError if something else stands there.
    """
    value = os.environ.get(name, "")
    try:
        return int(value) if value else UNTOLD[name]
    except ValueError as error:
        raise UserError(
            f"{name}={value!r}: expected a number in this variable of the environment, or nothing; a launcher "
            "of several workers sets it"
        ) from error


def check_launcher() -> None:
    """Raises UserError if a variable that will be asked for holds no number. To be called before anything else."""
    for name in UNTOLD:
        launcher_number(name)
