"""Output layers: one idea a file, one interface. ``head(hidden, target) -> loss`` never stores (tokens, K, V)."""

from highrank.heads.grown_mixture import GrownMixture
from highrank.heads.head import Components, Head
from highrank.heads.mixture_of_contexts import MixtureOfContexts
from highrank.heads.mixture_of_softmaxes import MixtureOfSoftmaxes
from highrank.heads.softmax import Softmax

__all__ = ["Components", "GrownMixture", "Head", "MixtureOfContexts", "MixtureOfSoftmaxes", "Softmax"]
