"""How long work tells of itself: what the code that works needs of a display, and nothing of how it looks."""

from typing import Protocol, final

__all__ = ["SILENT", "Display"]


class Display(Protocol):
    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        """``done`` of ``total`` units of ``task`` are done, at this mean loss lately if there is one. To be called
        often. ``total`` None: not known. Bytes are shown as megabytes."""

    def message(self, text: str) -> None:
        """Something worth keeping on the screen."""


@final
class _Silent:
    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        return None

    def message(self, text: str) -> None:
        return None


SILENT: Display = _Silent()
