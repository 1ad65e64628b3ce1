"""Neurons drawn by chance: the control that every method must beat.

Plain: uniformly over all layers. Matched: for each neuron that the highest bias outside a protected share would give, another of the
same layer whose activation norm on calibration text is nearly the same. Source: controls for pruning claims; this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import (
    Budget,
    Choice,
    Needs,
    PolicyContext,
    Scores,
    SelectionPolicy,
    SquareSum,
    draw_matched,
    eligible,
    select_top,
)


@dataclass(frozen=True, kw_only=True)
class Random(SelectionPolicy):
    """Neurons drawn by the run's seed."""

    blind: ClassVar[bool] = True

    matched: bool = False
    """Draw neurons of the same layer and activation norm as the most biased ones."""
    protect: float = 0.0
    """Share of all neurons, by importance, that is never drawn (nor, with `matched`, imitated)."""

    def __post_init__(self) -> None:
        if not 0 <= self.protect < 1:
            raise ValueError(f"The 'protect' must be in [0, 1). Got {self.protect} instead.")

    def needs(self) -> Needs:
        """With `matched`, activation norms from one forward over the scoring half of the calibration text."""
        return Needs(statistics=(SquareSum(),)) if self.matched else Needs()

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = eligible(scores, budget, self.protect)
        if not allowed:
            return Choice(units={}, reason="all layers are protected")
        nothing = f"the budget {budget} and the protected share leave no neuron"
        if not self.matched:
            draws = {
                name: torch.rand(len(may), generator=context.generator, dtype=torch.float64) for name, may in allowed.items()
            }
            return select_top(scores, budget, draws, allowed, nothing)
        biased = {name: may & (scores.bias[name] > 0) for name, may in allowed.items()}
        reference = select_top(scores, budget, scores.bias, biased, nothing).units
        norms = {name: self._norms(context, name, scores.sites[name].units) for name in reference}
        units = {
            name: drawn for name, drawn in draw_matched(reference, norms, allowed, context.generator).items() if len(drawn)
        }
        return Choice(units=units, reason=None if units else nothing)

    def _norms(self, context: PolicyContext, name: str, units: int) -> Tensor:
        squares_K = context.at(name).sums["square-sum.squares"][0]
        return squares_K.reshape(units, -1).sum(1).sqrt()
