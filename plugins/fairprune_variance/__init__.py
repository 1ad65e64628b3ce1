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

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic

EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class ContrastVariance(Statistic):
    """Three rows a contrast: mean over slots of the variance over variants, of the mean square, and 1 if any slot was seen."""

    name: str = "contrast-variance"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `moments`: (C, 3, N)."""
        acts_CVSN = obs.aligned["neuron"]
        seen_CVS1 = obs.aligned_mask.unsqueeze(-1)
        count_CS1 = seen_CVS1.sum(1)
        slots_C1 = (count_CS1 > 0).sum(1)
        weight_CVS1 = seen_CVS1 / (count_CS1 * slots_C1.unsqueeze(-1)).clamp_min(1).unsqueeze(1).double()
        square_CN = (acts_CVSN.square() * weight_CVS1).sum((1, 2))
        if acts_CVSN.shape[1] == 2:  # pairs need half the work: a slot is seen in both variants or in none
            centred_CSN = acts_CVSN[:, 0] - acts_CVSN[:, 1]
            variance_CN = (centred_CSN.square_() * (weight_CVS1[:, 0] * 0.5)).sum(1)
        else:
            mean_C1SN = (acts_CVSN * seen_CVS1).sum(1, keepdim=True) / count_CS1.unsqueeze(1).clamp_min(1)
            variance_CN = ((acts_CVSN - mean_C1SN).square_() * weight_CVS1).sum((1, 2))
        seen_CN = (slots_C1 > 0).double().expand_as(variance_CN)
        return {"moments": torch.stack([variance_CN, square_CN, seen_CN], 1)}


@dataclass(frozen=True, kw_only=True)
class Variance(BiasScorer):
    """Mean over contrasts of the variance over the variants. Unit: activation squared, or none if `relative`."""

    relative: bool = False
    """Divide by the mean square over the same slots (plus 1e-12)."""

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(ContrastVariance(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        variance_N, square_N, seen_N = at.sums["contrast-variance.moments"]
        if self.relative:
            return variance_N / (square_N + EPSILON * seen_N.clamp_min(1))
        return variance_N / seen_N.clamp_min(1)
