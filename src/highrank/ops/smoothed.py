"""The loss with smoothed labels: every class has a part in it, and still (N, K, V) is never stored.

A class has the share q[v] = (1 - smoothing) * 1{v = y} + smoothing / V of a token's label, and with the posterior
r_k[v] = P(component k | class v)

    loss                      = -sum_v q[v] log p(v)
    w_k[v]                    = q[v] * r_k[v],   mass_k = sum_v w_k[v]      (sum_k mass_k = 1)
    d loss / d z_k[v]         = mass_k * ( softmax(z_k)[v] - w_k[v] / mass_k )
    d loss / d prior_logits_k = pi_k - mass_k

As without smoothing, where w_k is the posterior of the target's class and zero elsewhere (``ops.chunked``), a row of
the logits' gradients is a difference of two distributions, and its weight is left to the small side of the products:
the filter's bound holds with mass in the place of the posterior. Three matrix products; for K > 1 two exponentials a
logit instead of one. The passes go over some tokens at a time, so few that on a CPU they stay in the cache.
"""

import torch
from torch import Tensor

from highrank.ops.chunked import (
    add_kept_products,
    block_buffer,
    logits_of,
    new_gradients,
    strip_like,
    strips,
)
from highrank.ops.walk import Gradients, Needs, Settings

__all__ = ["walk"]


def walk(
    context: Tensor,
    prior_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    token_weight: Tensor | None,
    needs: Needs,
    settings: Settings,
) -> tuple[Tensor, Tensor, Gradients]:
    """As ``ops.walk.Walk``, with the mean log-probability of all classes (N) beside the target's (N, K)."""
    tokens, components, features = context.shape
    classes, dtype = weight.shape[0], settings.accumulation_dtype
    buffer_RU = block_buffer(context, weight, settings)
    block = len(buffer_RU) // components
    prob_SU = strip_like(buffer_RU, components, settings)
    strip_SU = torch.empty_like(prob_SU) if buffer_RU.dtype != dtype else None
    log_prior_NK = torch.log_softmax(prior_logits.to(dtype), dim=-1)
    log_prob_NK, mass_NK = torch.empty_like(log_prior_NK), torch.zeros_like(log_prior_NK)
    mean_log_prob_N = log_prior_NK.new_empty(tokens)
    grads = new_gradients(context, weight, needs, dtype)
    differentiated = token_weight is not None and (needs.context or needs.weight or needs.bias)
    masses = token_weight is not None and any(needs)

    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        block_RU = logits_of(context_RD, weight, bias, buffer_RU[: len(context_RD)])
        for rows, wide_RU in strips(block_RU, strip_SU, write=differentiated, most=len(prob_SU)):
            some = slice(start + rows.start // components, start + rows.stop // components)  # s = tokens in strip
            logits_sKV, room_sKV = (
                x.view(-1, components, x.shape[1])[..., :classes] for x in (wide_RU, prob_SU[: len(wide_RU)])
            )
            total_sK1 = _log_softmax_in_place(logits_sKV, room_sKV)
            target_s11 = target[some].view(-1, 1, 1)
            log_prob_NK[some] = logits_sKV.gather(2, target_s11.expand(-1, components, 1)).squeeze(2)
            mean_log_prob_N[some], share_s1V = _mix(logits_sKV, log_prior_NK[some], target_s11, settings, masses)
            if not masses:
                continue
            if share_s1V is None:
                mass_NK[some] = 1
            else:
                logits_sKV.mul_(share_s1V)
                mass_sK1 = logits_sKV.sum(dim=2, keepdim=True)
                mass_NK[some] = mass_sK1.squeeze(2)
                logits_sKV.div_(mass_sK1.clamp_(min=torch.finfo(dtype).tiny))
            if differentiated:  # softmax - w / mass
                torch.sub(room_sKV.div_(total_sK1), logits_sKV, out=logits_sKV)
        if differentiated and token_weight is not None:
            weights = mass_NK[part], token_weight[part].unsqueeze(1).to(dtype), settings.min_posterior
            add_kept_products(block_RU, len(buffer_RU), part, *weights, context_RD, weight, grads, strip_SU)

    if token_weight is not None and needs.prior_logits:
        grad_NK = log_prior_NK.exp().sub_(mass_NK).mul_(token_weight.unsqueeze(1))
        grads = grads._replace(prior_logits=grad_NK.to(prior_logits.dtype))
    return log_prob_NK, mean_log_prob_N, grads


def _log_softmax_in_place(logits_sKV: Tensor, room_sKV: Tensor) -> Tensor:
    """``room_sKV`` has the probabilities, but for a factor a row, their sum (s, K, 1), which is returned."""
    logits_sKV.sub_(logits_sKV.amax(dim=2, keepdim=True))
    total_sK1 = torch.exp(logits_sKV, out=room_sKV).sum(dim=2, keepdim=True)
    logits_sKV.sub_(total_sK1.log())
    return total_sK1


def _mix(
    log_prob_sKV: Tensor, log_prior_sK: Tensor, target_s11: Tensor, settings: Settings, masses: bool
) -> tuple[Tensor, Tensor | None]:
    """The mean over classes of the mixture's log-probabilities (s). With ``masses`` also the factor (s, 1, V) that
    makes w of what is left in the tensor; None of one component, where it is w already."""
    components, classes = log_prob_sKV.shape[1:]
    least = settings.label_smoothing / classes
    if components == 1:  # it is responsible for every class
        mean_s = log_prob_sKV.mean(dim=(1, 2))
        if masses:
            log_prob_sKV.fill_(least).scatter_(2, target_s11, 1 - settings.label_smoothing + least)
        return mean_s, None

    limits = torch.finfo(log_prob_sKV.dtype)
    joint_sKV = log_prob_sKV.add_(log_prior_sK.unsqueeze(2))
    # A class that no component gives a probability makes the loss infinite, not NaN.
    top_s1V = joint_sKV.amax(dim=1, keepdim=True).clamp_(min=limits.min)
    sum_s1V = joint_sKV.sub_(top_s1V).exp_().sum(dim=1, keepdim=True)
    mean_s = top_s1V.add_(sum_s1V.log()).mean(dim=(1, 2))
    if not masses:
        return mean_s, None
    share_s1V = top_s1V.fill_(least).scatter_(2, target_s11, 1 - settings.label_smoothing + least)
    return mean_s, share_s1V.div_(sum_s1V.clamp_(min=limits.tiny))
