"""The one exception that means: the user asked for something that cannot be done, and this line says what and why."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line: what was expected, what came, what to do.

    The command line prints it without a traceback and exits with ``exit_code``: 1 for a failure, 2 for wrong use.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
