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


def slot_weights(obs: Observation) -> tuple[Tensor, Tensor]:
    """Weights (C, V, 1, S) of a mean over variants and then slots, and (C, 1, 1) 1.0 where a contrast has any slot."""
    count_CS = obs.aligned_mask.sum(1)
    slots_C1 = (count_CS > 0).sum(1, keepdim=True)
    weight_CVS = obs.aligned_mask / (count_CS * slots_C1).clamp_min(1).unsqueeze(1).double()
    return weight_CVS.unsqueeze(2), (slots_C1 > 0).double().unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class ContrastVariance(Statistic):
    """Two rows a contrast: mean over slots of the variance over variants, and 1 if any slot was seen."""

    name: str = "contrast-variance"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `moments`: (C, 2, N)."""
        acts_CVSN = obs.aligned["neuron"]
        weight_CV1S, seen_C11 = slot_weights(obs)
        if acts_CVSN.shape[1] == 2:  # pairs need half the work: a slot is seen in both variants or in none
            square_CSN = (acts_CVSN[:, 0] - acts_CVSN[:, 1]).square_()
            variance_C1N = torch.bmm(weight_CV1S[:, 0] * 0.5, square_CSN)
        else:
            seen_CVS1 = obs.aligned_mask.unsqueeze(-1)
            mean_C1SN = (acts_CVSN * seen_CVS1).sum(1, keepdim=True) / seen_CVS1.sum(1, keepdim=True).clamp_min(1)
            centred_CVSN = (acts_CVSN - mean_C1SN).square_()
            variance_C1N = torch.bmm(weight_CV1S.flatten(1).unsqueeze(1), centred_CVSN.flatten(1, 2))
        return {"moments": torch.cat([variance_C1N, seen_C11.expand_as(variance_C1N)], 1)}


@dataclass(frozen=True, kw_only=True)
class SlotSquares(Statistic):
    """One row a contrast: mean over variants and slots of the squared activation."""

    name: str = "slot-squares"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `mean`: (C, 1, N)."""
        acts_CVSN, (weight_CV1S, _) = obs.aligned["neuron"], slot_weights(obs)
        return {"mean": torch.bmm(weight_CV1S.flatten(1).unsqueeze(1), acts_CVSN.square().flatten(1, 2))}


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
        variance_N, seen_N = at.sums["contrast-variance.moments"]
        if self.relative:
            return variance_N / (at.sums["slot-squares.mean"][0] + EPSILON * seen_N.clamp_min(1))
        return variance_N / seen_N.clamp_min(1)
