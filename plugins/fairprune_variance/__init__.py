"""Bias by the variance of a neuron's activation over the variants of a contrast.

For each aligned slot, the population variance of the activation over the V variants; averaged over the slots, then over the
contrasts of a category; the core averages over the categories. For V = 2 this is (a1 - a2)^2 / 4. With `relative`, divided by the
mean square over the same slots. Source: the Fairness Pruning article; slots and averaging are this project's,
docs/method/variance.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, mean_variance

EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class ContrastVariance(Statistic):
    """Mean over slots of the variance over variants, and 1 if any slot was seen."""

    name: str = "contrast-variance"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mean`: (C, 1, N), and `seen`: (C, 1, 1)."""
        return {"mean": mean_variance(obs), "seen": obs.reached}


@dataclass(frozen=True, kw_only=True)
class SlotSquares(Statistic):
    """One row a contrast: mean over variants and slots of the squared activation."""

    name: str = "slot-squares"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `mean`: (C, 1, N)."""
        acts_CVSN = obs.aligned["neuron"]
        weight_CVS = obs.aligned_mask * (obs.slot_weight / obs.aligned_mask.sum(1).clamp_min(1)).unsqueeze(1)
        return {"mean": torch.bmm(weight_CVS.flatten(1).unsqueeze(1), acts_CVSN.square().flatten(1, 2))}


@dataclass(frozen=True, kw_only=True)
class Variance(BiasScorer):
    """Mean over contrasts of the variance over the variants. Unit: activation squared, or none if `relative`."""

    relative: bool = False
    """Divide by the mean square over the same slots (plus 1e-12)."""

    def needs(self) -> Needs:
        """The statistics above, from one forward."""
        return Needs(statistics=(ContrastVariance(), SlotSquares()) if self.relative else (ContrastVariance(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        variance_N, seen_1 = at.sums["contrast-variance.mean"][0], at.sums["contrast-variance.seen"][0].clamp_min(1)
        if self.relative:
            return variance_N / (at.sums["slot-squares.mean"][0] + EPSILON * seen_1)
        return variance_N / seen_1
