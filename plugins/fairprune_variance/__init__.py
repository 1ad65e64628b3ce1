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
        variants = acts_CVSN.shape[1]
        count_CS = obs.aligned_mask.sum(1)
        slots_C1 = (count_CS > 0).sum(1, keepdim=True)
        weight_CV1S = (obs.aligned_mask / (count_CS * slots_C1).clamp_min(1).unsqueeze(1).double()).unsqueeze(2)
        if variants == 2:  # pairs need half the work: a slot is seen in both variants or in none
            centred = [(acts_CVSN[:, 0] - acts_CVSN[:, 1]).mul_(0.5**0.5)]
        else:
            seen_CVS1 = obs.aligned_mask.unsqueeze(-1)
            mean_CSN = (acts_CVSN * seen_CVS1).sum(1) / count_CS.clamp_min(1).unsqueeze(-1)
            centred = [acts_CVSN[:, v] - mean_CSN for v in range(variants)]
        # weighted sums over slots, as products of a row with a matrix
        variance_C1N, square_C1N = (
            sum((torch.bmm(weight_CV1S[:, v], each) for v, each in enumerate(squares)), torch.zeros(()))
            for squares in ([c.square_() for c in centred], [acts_CVSN[:, v].square() for v in range(variants)])
        )
        seen_C1N = (slots_C1 > 0).double().unsqueeze(-1).expand_as(variance_C1N)
        return {"moments": torch.cat([variance_C1N, square_C1N, seen_C1N], 1)}


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
