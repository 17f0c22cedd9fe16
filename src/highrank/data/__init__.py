"""Corpora: finding, loading and describing them."""

from highrank.data.catalog import find_corpus, is_published
from highrank.data.corpus import Corpus, corpus_statistics, load_corpus, word_counts
from highrank.data.vocabulary import Vocabulary

__all__ = ["Corpus", "Vocabulary", "corpus_statistics", "find_corpus", "is_published", "load_corpus", "word_counts"]
