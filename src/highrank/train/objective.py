"""What training minimises: the prediction loss and two penalties on the last layer's activations."""

from torch import Tensor

from highrank.models import LanguageModelOutput

__all__ = ["objective"]


def objective(output: LanguageModelOutput, alpha: float, beta: float) -> Tensor:
    """loss + alpha * mean(h^2) + beta * mean((raw[t+1] - raw[t])^2), in nats and squared activations.

    h is the last layer's output after its dropout, raw the same before it.
    Source: Merity, McCann, Socher 2017 (arXiv 1708.01009): AR and TAR.
    """
    total = output.loss
    if alpha:
        total = total + alpha * output.hidden.pow(2).mean()
    if beta and len(output.raw) > 1:
        total = total + beta * (output.raw[1:] - output.raw[:-1]).pow(2).mean()
    return total
