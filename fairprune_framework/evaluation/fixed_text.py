"""Perplexity on a fixed text: the first so many tokens, cut into windows that share no context, with an interval over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from fairprune_framework.evaluation.metrics.continuations import score
from fairprune_framework.functional.bootstrap import Floats, StatisticChange, change_of

WINDOW = 512


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Of one model on one text."""

    nll: tuple[float, ...]
    """Nats of each window, summed over its tokens but the first."""
    tokens: tuple[int, ...]
    """Tokens that were predicted in each window."""

    @property
    def perplexity(self) -> float:
        """Per token: exp(sum of nats / tokens); infinite where no number holds it."""
        mean = sum(self.nll) / sum(self.tokens)
        return math.exp(mean) if mean < 700 else math.inf


def windows_of(ids: Sequence[int], window: int = WINDOW) -> list[tuple[int, ...]]:
    """The text in windows; what is left over at the end and holds fewer than two tokens is dropped.

    >>> windows_of([5, 6, 7, 8, 9], 2)
    [(5, 6), (7, 8)]
    """
    windows = [tuple(ids[start : start + window]) for start in range(0, len(ids), window)]
    return [one for one in windows if len(one) > 1]


def text_loss(model: nn.Module, windows: Sequence[Sequence[int]], max_tokens: int = 512) -> TextLoss:
    """Measure the windows, or documents, of at least two tokens each."""
    requests = [((window[0],), tuple(window[1:])) for window in windows]
    answers = score(model, requests, max_tokens)
    return TextLoss(nll=tuple(-value for value, _ in answers), tokens=tuple(len(continuation) for _, continuation in requests))


def perplexity_change(before: TextLoss, after: TextLoss, seed: int = 0, level: float = 0.95) -> StatisticChange:
    """Perplexity before and after, with an interval of that level over windows."""
    first, second = (np.stack([loss.nll, loss.tokens], 1) for loss in (before, after))
    return change_of(first, second, range(len(before.nll)), _perplexity, seed=seed, level=level)


def _perplexity(sums: Floats) -> Floats:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(sums[..., 0] / sums[..., 1]))
