"""The exception that means: the user asked for something that cannot be done, and this line says what and why."""

from typing import Any

__all__ = ["NotRecordedError", "UserError", "not_importable", "one_line"]

LONGEST = 1200


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line: what was expected, what came, what to do.

    Names and values of files stand in it: it is made printable and kept short. ``advice`` is our own text for the
    lines below. The command line prints it without a traceback and exits with ``exit_code``: 1 for a failure, 2 for
    wrong use.
    """

    def __init__(self, message: str, *, advice: str = "", exit_code: int = 1) -> None:
        super().__init__(one_line(message) + advice)
        self.exit_code = exit_code


class NotRecordedError(UserError):
    """A run cannot take what was computed of it (a full disk, a folder of somebody else's). ``result`` has it."""

    def __init__(self, error: UserError, result: dict[str, Any]) -> None:
        super().__init__(f"not recorded: {error}", exit_code=error.exit_code)
        self.result = result


def not_importable(error: ImportError, what: str) -> UserError:
    """Of a command ``what`` that needs the libraries of the extra of its name."""
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{what} needs {error.name}, which is not installed: pip install 'highrank[{what}]'")
    return UserError(f"{what} needs a library that is installed, but cannot be loaded: {error}")


def one_line(text: str) -> str:
    """``text`` as a terminal may be given it: at most 1,200 characters, line ends and control characters spelt out."""
    text = _shortened(text)
    if text.isprintable():
        return text
    return _shortened("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def _shortened(text: str) -> str:
    """The beginning says where, the end what to do: the middle goes."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[5 - LONGEST // 2 :]}"
