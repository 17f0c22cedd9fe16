"""A display that remembers what it was told."""

__all__ = ["Telling"]


class Telling:
    def __init__(self) -> None:
        self.shown: list[tuple[str, int, int | None, str]] = []
        self.losses: list[float | None] = []
        self.messages: list[str] = []

    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        self.shown.append((task, done, total, unit))
        self.losses.append(loss_nats)

    def message(self, text: str) -> None:
        self.messages.append(text)
