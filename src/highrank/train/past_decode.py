"""Past decode regularisation: the last word that was read has to be guessable from what is predicted to come next.

From the expected embedding of the next word, e = sum_v p(v) W_v, a softmax of its own over the same words guesses the
last one: softmax(W tanh(A e + a) + b). A, a and b are learned with the model, and used in training only.

After Brahma 2018 (arXiv 1808.05908): of the paper its idea and equations were at hand, not its code.
"""

from torch import Tensor, nn

from highrank.data.batches import Segment
from highrank.models import LanguageModel, LanguageModelOutput, State

__all__ = ["predict_and_decode_past"]


def predict_and_decode_past(model: LanguageModel, segment: Segment, state: State) -> tuple[LanguageModelOutput, Tensor]:
    """What ``model`` returns of a segment (T, B), and the mean nats of guessing the words that were read.

    Both losses are of the same p, all of which the second one needs: p, its logarithm and their gradients are held for
    a moment, (T, B, V) each, and there is no posterior filter.
    """
    if model.past_decoder is None:
        raise ValueError(
            "model: expected one with a past_decoder, as build_model makes it, got one for prediction only"
        )
    output = model.backbone(segment.tokens, state)
    log_prob = model.head.log_prob(output.hidden)
    loss = nn.functional.nll_loss(log_prob.flatten(0, 1), segment.target.flatten())
    past_loss: Tensor = model.past_decoder(log_prob.exp() @ model.head.weight, segment.tokens)
    return LanguageModelOutput(loss, output.hidden, output.raw, output.state), past_loss
