"""Evaluation of a trained model on text: static, dynamic, by its own samples, by its rank and its components."""

from highrank.evaluate.adaptation import Adaptation, DynamicSettings, GradientStatistics
from highrank.evaluate.cache import DEFAULT_WINDOW, CacheSettings, evaluate_with_cache, tune_cache
from highrank.evaluate.cache_of_run import evaluate_run_with_cache
from highrank.evaluate.components_of_run import components_run
from highrank.evaluate.dynamic import dynamic_evaluate, gradient_statistics
from highrank.evaluate.generate import Sampling, generate, generate_text
from highrank.evaluate.matrix import read_matrix
from highrank.evaluate.of_run import (
    cached_statistics,
    dynamic_evaluate_run,
    dynamic_settings,
    evaluate_run,
    has_dynamic_result,
    known_statistics,
    prepare_statistics,
    scored_settings,
)
from highrank.evaluate.paper import PAPER_RANKS
from highrank.evaluate.passage import Passage, line_start, read_passage
from highrank.evaluate.perplexity import Evaluation, evaluate
from highrank.evaluate.prediction import Explanation, Prediction, predict_next
from highrank.evaluate.rank import Rank, rank
from highrank.evaluate.rank_of_run import number_of_contexts, rank_run
from highrank.evaluate.score import Score, ScoredWord, Surprisal, score_text, surprisal
from highrank.evaluate.search import Trial, search_settings
from highrank.evaluate.temperature import TemperatureSearch, evaluate_at, tune_temperature
from highrank.evaluate.temperature_of_run import evaluate_run_at, tune_temperature_of

__all__ = [
    "DEFAULT_WINDOW",
    "PAPER_RANKS",
    "Adaptation",
    "CacheSettings",
    "DynamicSettings",
    "Evaluation",
    "Explanation",
    "GradientStatistics",
    "Passage",
    "Prediction",
    "Rank",
    "Sampling",
    "Score",
    "ScoredWord",
    "Surprisal",
    "TemperatureSearch",
    "Trial",
    "cached_statistics",
    "components_run",
    "dynamic_evaluate",
    "dynamic_evaluate_run",
    "dynamic_settings",
    "evaluate",
    "evaluate_at",
    "evaluate_run",
    "evaluate_run_at",
    "evaluate_run_with_cache",
    "evaluate_with_cache",
    "generate",
    "generate_text",
    "gradient_statistics",
    "has_dynamic_result",
    "known_statistics",
    "line_start",
    "number_of_contexts",
    "predict_next",
    "prepare_statistics",
    "rank",
    "rank_run",
    "read_matrix",
    "read_passage",
    "score_text",
    "scored_settings",
    "search_settings",
    "surprisal",
    "tune_cache",
    "tune_temperature",
    "tune_temperature_of",
]
