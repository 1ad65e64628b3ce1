"""Bias by signs and ranks of activations alone: what massive activations cannot stretch.

sign-rate            largest difference over attribute values of the log-odds that the neuron is above 0
mutual-information   I(attribute value; activation above 0) over tokens
paired-auc           |2 AUC - 1| of telling a value from the others of its contrast by the activation; largest over values

Source: Shannon 1948; Hanley and McNeil 1982 for the area; counts get 1/2 added as by Haldane and Anscombe. docs/method/signs.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, shared_slots, value_of_variants

UNPAIRED = {"zero-difference": "values are compared over all texts, so equal variants of different contrasts still differ"}


@dataclass(frozen=True, kw_only=True)
class SignCounts(Statistic):
    """For each value: in how many shared slots the neuron is above 0, and of how many."""

    name: str = "sign-counts"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `high`: (C, A, N), and `all`: (C, A, 1)."""
        high_CVN = (shared_slots(obs) > 0).float().sum(2).double()  # whole numbers, which float32 holds exactly
        value_CVA = value_of_variants(obs)
        return {
            "high": torch.einsum("cva,cvn->can", value_CVA, high_CVN),
            "all": torch.einsum("cva,cv->ca", value_CVA, obs.aligned_mask.double().sum(2)).unsqueeze(-1),
        }


@dataclass(frozen=True, kw_only=True)
class SignRate(BiasScorer):
    """Largest difference over values of the log-odds of an activation above 0, 1/2 added to the counts. Unit: nats."""

    exemptions: ClassVar[Mapping[str, str]] = UNPAIRED

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(SignCounts(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        high_AN, all_A1 = at.sums["sign-counts.high"], at.sums["sign-counts.all"]
        odds_AN = ((high_AN + 0.5) / (all_A1 - high_AN + 0.5)).log()[all_A1[:, 0] > 0]
        return odds_AN.amax(0) - odds_AN.amin(0)


@dataclass(frozen=True, kw_only=True)
class MutualInformation(BiasScorer):
    """Mutual information of the attribute value and the sign of the activation, over tokens. Unit: nats."""

    exemptions: ClassVar[Mapping[str, str]] = UNPAIRED

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(SignCounts(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        high_AN, all_A1 = at.sums["sign-counts.high"], at.sums["sign-counts.all"]
        p_2AN = torch.stack([high_AN, all_A1 - high_AN]).clamp_min(0) / all_A1.sum().clamp_min(1)
        independent_2AN = p_2AN.sum(0, keepdim=True) * p_2AN.sum(1, keepdim=True)
        information_N: Tensor = (torch.xlogy(p_2AN, p_2AN) - torch.xlogy(p_2AN, independent_2AN)).sum((0, 1))
        return information_N.clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class Wins(Statistic):
    """For each value: how often its variant is above another of the same contrast and slot (ties half), and of how many pairs."""

    name: str = "wins"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `won`: (C, A, N), and `all`: (C, A, 1)."""
        acts_CVSN, seen_CV, value_CVA = shared_slots(obs), obs.aligned_mask.any(2), value_of_variants(obs)
        seen_CVV = (seen_CV.unsqueeze(1) & seen_CV.unsqueeze(2)).double()
        lead_CVN = acts_CVSN.new_zeros(*seen_CV.shape, acts_CVSN.shape[-1])
        for one, two in combinations(range(acts_CVSN.shape[1]), 2):
            above_CSN = (acts_CVSN[:, one] - acts_CVSN[:, two]).sign_()
            ahead_CN = torch.einsum("cs,csn->cn", obs.slot_weight, above_CSN) * seen_CVV[:, one, two].unsqueeze(1)
            lead_CVN[:, one] += ahead_CN  # shares of slots won less lost: what one has, the other lacks
            lead_CVN[:, two] -= ahead_CN
        others_CV = (seen_CVV.sum(2) - 1).clamp_min(0)
        won_CVN = (lead_CVN + others_CV.unsqueeze(-1)) / 2
        return {
            "won": torch.einsum("cva,cvn->can", value_CVA, won_CVN),
            "all": torch.einsum("cva,cv->ca", value_CVA, others_CV).unsqueeze(-1),
        }


@dataclass(frozen=True, kw_only=True)
class PairedAuc(BiasScorer):
    """|2 AUC - 1| of a value against the others of its contrast, the largest over values. No unit, in [0, 1]."""

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(Wins(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        won_AN, all_A1 = at.sums["wins.won"], at.sums["wins.all"]
        off_AN: Tensor = (2 * won_AN / all_A1.clamp_min(1) - 1).abs()
        return off_AN.masked_fill(all_A1 == 0, 0).amax(0)
