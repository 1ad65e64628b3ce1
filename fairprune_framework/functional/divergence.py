"""Divergences of next-token distributions: what judges a change and what is attributed to neurons are the same functions."""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_js(logits_CVW: Tensor, present_CV: Tensor) -> Tensor:
    """H(mean p) - mean H(p) over the present variants, nats: (C, V, vocab), (C, V) -> (C,) float64.

    >>> generalised_js(torch.tensor([[[0.0, -50.0], [-50.0, 0.0]]]), torch.ones(1, 2).bool()).round(decimals=4).item()
    0.6931
    """
    log_p = torch.log_softmax(logits_CVW.double(), -1)
    weight = (present_CV.double() / present_CV.sum(1, keepdim=True)).unsqueeze(-1)
    log_mean = torch.logsumexp(log_p + weight.log(), 1)  # an absent variant adds exp(-inf)
    entropy_of_mean = -(log_mean.exp() * log_mean).sum(-1)
    mean_entropy = -((log_p.exp() * log_p).sum(-1, keepdim=True) * weight).sum((1, 2))
    divergence: Tensor = entropy_of_mean - mean_entropy
    return divergence.clamp_min(0)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), nats: log probabilities (..., vocab) twice -> (...).

    >>> half, skewed = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(kl_divergence(half, skewed).item(), 4)
    0.1438
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)
