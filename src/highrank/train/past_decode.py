"""Past decode regularisation: the last word that was read has to be guessable from what is predicted to come next.

From the expected embedding of the next word, e = sum_v p(v) W_v, a softmax of its own over the same words guesses the
last one: softmax(W tanh(A e + a) + b). A, a and b are learned with the model, and used in training only.

After Brahma 2018 (arXiv 1808.05908): of the paper its idea and equations were at hand, not its code. Under a dropout of
contexts p is that of another mask than the loss is of.
"""

from torch import Tensor

from highrank.models import LanguageModel

__all__ = ["past_decode_loss"]


def past_decode_loss(model: LanguageModel, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Mean nats of the words ``tokens`` (T, B), which were read last, by what hidden (T, B, H) predicts.

    Holds p and its gradient, (T, B, V) each, until the backward pass has used them.
    """
    if model.past_decoder is None:
        raise ValueError("model: expected one with a past_decoder")
    expected = model.head.log_prob(hidden).exp() @ model.head.weight  # (T, B, D)
    loss: Tensor = model.past_decoder(expected, tokens)
    return loss
