"""Protect the most important neurons, then take the most biased of all layers.

The top `protect` share of all neurons by importance is never touched; of the others the highest bias goes first, over all layers
together. Neurons with a bias of 0 or below are not chosen. With `exchange` above 0 the bias of a neuron is divided by what it costs:
bias / (importance + median importance) ** exchange. With `recall` neurons that help to recall a word of the text so far stay. Source:
the two-stage rule of FASP (Zayed et al., AAAI 2024), for neurons; the exchange rate and recall are this project's,
docs/method/protected-global.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import (
    Budget,
    Choice,
    Needs,
    PolicyContext,
    RecallSlopes,
    Scores,
    SelectionPolicy,
    eligible,
    select_top,
)

RECALL = RecallSlopes()


@dataclass(frozen=True, kw_only=True)
class ProtectedGlobal(SelectionPolicy):
    """The highest bias over all layers, outside a protected share by importance."""

    protect: float = 0.1
    """Share of all neurons, by importance, that is never touched."""
    exchange: float = 0.0
    """Exponent of the importance that divides the bias; 0: the bias alone decides."""
    recall: bool = False
    """Never touch a neuron without which, to first order, rare words of the calibration text would be less likely when they return."""
    margin: float = 0.5
    """With `recall`: standard errors over documents that the effect must be from 0 to count."""

    def __post_init__(self) -> None:
        if not 0 <= self.exchange <= 2:
            raise ValueError(f"The 'exchange' must be in [0, 2]. Got {self.exchange} instead.")
        if not 0 <= self.protect < 1:
            raise ValueError(f"The 'protect' must be in [0, 1). Got {self.protect} instead.")
        if self.margin < 0:
            raise ValueError(f"The 'margin' must not be negative. Got {self.margin} instead.")

    def needs(self) -> Needs:
        """With `recall` one gradient pass over the scoring half of the calibration text."""
        return Needs(statistics=(RECALL,) if self.recall else ())

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = eligible(scores, budget, self.protect)
        if not allowed:
            return Choice(units={}, reason="all layers are protected")
        biased = {name: may & (scores.bias[name] > 0) for name, may in allowed.items()}
        if self.recall:
            biased = {name: may & ~RECALL.supports(context.at(name), self.margin) for name, may in biased.items()}
        nothing = f"the budget {budget} and what is protected leave no neuron with a bias above 0"
        return select_top(scores, budget, self._worth(scores), biased, nothing)

    def _worth(self, scores: Scores) -> Mapping[str, Tensor]:
        if self.exchange == 0:
            return scores.bias
        every = torch.cat(list(scores.importance.values()))
        if float(every.min()) < 0:
            raise ValueError("'exchange' needs an importance score that is never negative")
        typical = every.median().clamp_min(torch.finfo(every.dtype).tiny)  # a median of 0 says that most neurons cost nothing
        return {name: bias / (scores.importance[name] + typical) ** self.exchange for name, bias in scores.bias.items()}
