"""What a caller may say about how the loss is computed, without changing what is computed."""

from dataclasses import dataclass

__all__ = ["LossOptions"]


@dataclass(frozen=True)
class LossOptions:
    """How ``mixture_cross_entropy`` spends memory.

    block_bytes: size of the largest temporary, one block of logits (tokens_in_block * K, V). A block holds at least one
    token. 32 MiB keeps a block inside the last-level cache of a server CPU and is large enough for its matrix products
    to run at full speed.
    """

    block_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        if self.block_bytes < 1:
            raise ValueError(f"block_bytes: expected a positive number of bytes, got {self.block_bytes}")

    def tokens_per_block(self, num_components: int, num_classes: int, element_bytes: int) -> int:
        return max(1, self.block_bytes // (num_components * num_classes * element_bytes))
