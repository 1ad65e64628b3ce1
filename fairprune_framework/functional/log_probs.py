"""Log probabilities of given tokens: the one place that turns logits into log p, for scorers, metrics and checks alike."""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_probs(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Pick the log probability of each token: (..., vocab), (...) int64 -> (...), in the dtype of `log_probs`.

    >>> token_log_probs(torch.tensor([[-0.1, -2.3], [-1.2, -0.4]]), torch.tensor([1, 0]))
    tensor([-2.3000, -1.2000])
    """
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(token), nats: (..., vocab), (...) int64 -> (...), float64 for float64 logits and float32 otherwise.

    >>> log_probs(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).round(decimals=4)
    tensor([-0.1269])
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return token_log_probs(torch.log_softmax(wide, -1), tokens)
