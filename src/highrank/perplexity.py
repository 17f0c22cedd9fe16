"""What a loss in nats is as a perplexity."""

import math

__all__ = ["perplexity"]


def perplexity(loss_nats: float) -> float:
    """exp of a mean loss. Beyond 700 nats it stays where it is: exp would overflow, and it says nothing any more."""
    return math.exp(min(loss_nats, 700.0))
