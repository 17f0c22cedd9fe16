"""The ways to compute the mixture's loss, and the one table that chooses between them.

Every implementation takes flattened, checked arguments: context (N, K, D), prior_logits (N, K), weight (V, D),
bias (V) or None, target (N) with ``ignore_index`` for tokens that do not count, and returns the loss of each token (N)
or their sum, which is differentiable, and log P(target | component) (N, K), which is not.
``highrank.functional`` does the checking. Smoothed labels have a walk of their own, but in the
reference.
"""

from highrank.ops.factored import factored_loss
from highrank.ops.log_prob import fused_log_prob
from highrank.ops.operator import FLOP_FORMULAS, fused_loss
from highrank.ops.options import LossOptions, check_options
from highrank.ops.table import IMPLEMENTATIONS, choose
from highrank.ops.walk import Settings

__all__ = [
    "FLOP_FORMULAS",
    "IMPLEMENTATIONS",
    "LossOptions",
    "Settings",
    "check_options",
    "choose",
    "factored_loss",
    "fused_log_prob",
    "fused_loss",
]
