"""The AWD-LSTM, its dropouts, and the language model that joins a backbone and a head."""

from highrank.models.awd_lstm import AWDLSTM, BackboneOutput, DropConnectLSTM, State
from highrank.models.dropout import Dropout, EmbeddingDropout, LockedDropout, WeightDropout, seed_dropouts
from highrank.models.language_model import LanguageModel, LanguageModelOutput, detached, evaluating, without_dropout

__all__ = [
    "AWDLSTM",
    "BackboneOutput",
    "DropConnectLSTM",
    "Dropout",
    "EmbeddingDropout",
    "LanguageModel",
    "LanguageModelOutput",
    "LockedDropout",
    "State",
    "WeightDropout",
    "detached",
    "evaluating",
    "seed_dropouts",
    "without_dropout",
]
