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

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, pairs_of, value_sums

UNPAIRED = {"zero-difference": "values are compared over all texts, so equal variants of different contrasts still differ"}


@dataclass(frozen=True, kw_only=True)
class SignCounts(Statistic):
    """For each value: in how many shared slots the neuron is above 0, and of how many."""

    name: str = "sign-counts"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `high`: (C, A, N), and `all`: (C, A, 1)."""
        slots_CVSN = obs.slots["neuron"]
        high_CVSN = torch.gt(slots_CVSN, 0, out=torch.empty_like(slots_CVSN))  # as numbers: a third of the time of bools
        return {
            "high": value_sums(obs, high_CVSN.sum(2).double()),  # whole numbers, which float32 holds exactly
            "all": value_sums(obs, obs.aligned_mask.double().sum(2, keepdim=True)),
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
        slots_CVSN, seen_CV = obs.slots["neuron"], obs.aligned_mask.any(2)
        both_CVV = pairs_of(seen_CV).to(slots_CVSN.dtype)
        lead_CVN = slots_CVSN.new_zeros(*seen_CV.shape, slots_CVSN.shape[-1])
        for one, two in combinations(range(slots_CVSN.shape[1]), 2):
            ahead_CN = (slots_CVSN[:, one] - slots_CVSN[:, two]).sign_().sum(1).mul_(both_CVV[:, one, two].unsqueeze(1))
            lead_CVN[:, one] += ahead_CN  # slots won less lost, a whole number: what one has, the other lacks
            lead_CVN[:, two] -= ahead_CN
        share_C11 = obs.slot_weight.amax(1)[:, None, None]  # the same of every shared slot
        others_CV1 = (seen_CV.sum(1, keepdim=True) - 1).mul(seen_CV).double().unsqueeze(-1)
        won_CVN = (lead_CVN.double().mul_(share_C11) + others_CV1).div_(2)
        return {
            "won": value_sums(obs, won_CVN),
            "all": value_sums(obs, others_CV1),
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
