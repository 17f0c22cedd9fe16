"""The loss with smoothed labels: every class has a part in it, and still (N, K, V) is never stored.

The target's share of a token is q[v] = (1 - smoothing) * 1{v = y} + smoothing / V, and with the posterior
r_k[v] = P(component k | class v)

    loss                   = -sum_v q[v] log p(v)
    w_k[v]                 = q[v] * r_k[v],   mass_k = sum_v w_k[v]      (sum_k mass_k = 1)
    d loss / d z_k[v]      = mass_k * softmax(z_k)[v] - w_k[v]
    d loss / d prior_logits_k = pi_k - mass_k

Without smoothing w_k is the posterior of the target's class and zero elsewhere: ``ops.chunked``. Here the posterior is
of all classes: two exponentials a logit instead of one and some more passes, but the same three matrix products. The
passes go over some tokens at a time, so few that on a CPU they stay in the cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from highrank.ops.chunked import add_products, block_buffer, logits_of, strip_like, strips, vector_rows
from highrank.ops.walk import Gradients, Needs, Settings

__all__ = ["walk"]


class _Spread(NamedTuple):
    log_prob: Tensor  # (s, K), of the target
    mean_log_prob: Tensor  # (s), of the mixture, over all classes
    mass: Tensor  # (s, K)


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
    log_prob_NK, mass_NK = torch.empty_like(log_prior_NK), torch.empty_like(log_prior_NK)
    mean_log_prob_N = log_prior_NK.new_empty(tokens)
    grads = Gradients(
        context.new_empty(context.shape) if needs.context else None,
        None,
        vector_rows(weight.new_zeros, classes, features, dtype) if needs.weight else None,
        weight.new_zeros(classes, dtype=dtype) if needs.bias else None,
    )
    gradient = token_weight is not None and any(needs)
    for start in range(0, tokens, block):
        part = slice(start, min(start + block, tokens))
        context_RD = context[part].reshape(-1, features)
        block_RU = logits_of(context_RD, weight, bias, buffer_RU[: len(context_RD)])
        for rows, wide_RU in strips(block_RU, strip_SU, write=gradient, most=len(prob_SU)):
            some = slice(start + rows.start // components, start + rows.stop // components)
            logits_sKV, prob_sKV = (  # s = tokens in strip
                x.view(-1, components, x.shape[1])[..., :classes] for x in (wide_RU, prob_SU[: len(wide_RU)])
            )
            found = _spread(logits_sKV, prob_sKV, log_prior_NK[some], target[some], settings.label_smoothing, gradient)
            log_prob_NK[some], mean_log_prob_N[some], mass_NK[some] = found
        if token_weight is not None and gradient:
            row_weight_R1 = token_weight[part].to(dtype).repeat_interleave(components).unsqueeze(1)
            grad_context_RD = None if grads.context is None else grads.context[part].view(-1, features)
            add_products(block_RU[:, :classes], row_weight_R1, context_RD, weight, grad_context_RD, grads, strip_SU)
    if token_weight is not None and needs.prior_logits:
        grad_NK = log_prior_NK.exp().sub_(mass_NK).mul_(token_weight.unsqueeze(1))
        grads = grads._replace(prior_logits=grad_NK.to(prior_logits.dtype))
    return log_prob_NK, mean_log_prob_N, grads


def _spread(
    logits_sKV: Tensor, room_sKV: Tensor, log_prior_sK: Tensor, target_s: Tensor, smoothing: float, gradient: bool
) -> _Spread:
    """With ``gradient`` the logits become their gradients, but for the weights of the tokens."""
    components, classes = logits_sKV.shape[1:]
    target_s11 = target_s.view(-1, 1, 1)
    logits_sKV.sub_(logits_sKV.amax(dim=2, keepdim=True))
    prob_sKV = torch.exp(logits_sKV, out=room_sKV)
    total_sK1 = prob_sKV.sum(dim=2, keepdim=True)
    logits_sKV.sub_(total_sK1.log())
    log_prob_sK = logits_sKV.gather(2, target_s11.expand(-1, components, 1)).squeeze(2)
    if components == 1:  # it is responsible for every class
        spread = _Spread(log_prob_sK, logits_sKV.mean(dim=(1, 2)), torch.ones_like(log_prob_sK))
        if gradient:
            torch.sub(prob_sKV.div_(total_sK1), smoothing / classes, out=logits_sKV)
            logits_sKV.scatter_(2, target_s11, logits_sKV.gather(2, target_s11) - (1 - smoothing))
        return spread

    joint_sKV = logits_sKV.add_(log_prior_sK.unsqueeze(2))
    # Not -inf, where no component gives a class a probability: the loss is infinite then, but it is a number.
    top_s1V = joint_sKV.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(joint_sKV.dtype).min)
    joint_sKV.sub_(top_s1V).exp_()
    sum_s1V = joint_sKV.sum(dim=1, keepdim=True)
    mean_log_prob_s = top_s1V.add_(sum_s1V.log()).mean(dim=(1, 2))
    if not gradient:
        return _Spread(log_prob_sK, mean_log_prob_s, torch.empty_like(log_prob_sK))
    share_s1V = torch.full_like(sum_s1V, smoothing / classes)
    share_s1V.scatter_(2, target_s11, 1 - smoothing + smoothing / classes)
    w_sKV = joint_sKV.mul_(share_s1V.div_(sum_s1V).masked_fill_(sum_s1V == 0, 0))
    mass_sK1 = w_sKV.sum(dim=2, keepdim=True)
    torch.sub(prob_sKV.mul_(mass_sK1 / total_sK1), w_sKV, out=logits_sKV)
    return _Spread(log_prob_sK, mean_log_prob_s, mass_sK1.squeeze(2))
