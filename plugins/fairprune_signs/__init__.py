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

from fairprune_framework.api import (
    BiasScorer,
    Needs,
    Observation,
    SiteContext,
    Statistic,
    ValueSums,
    pairs_shared,
    slot_share,
    value_of_variants,
    value_sums,
)

UNPAIRED = {"zero-difference": "values are compared over all texts, so equal variants of different contrasts still differ"}


@dataclass(frozen=True, kw_only=True)
class SignCounts(Statistic):
    """For each value: in how many shared slots the neuron is above 0, and of how many."""

    name: str = "sign-counts"

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """See `Statistic.summands`. Outputs `high`: (C, A, N), and `all`: (C, A, 1)."""
        slots_CVSN = obs.slots["neuron"]
        high_CSN = obs.room("gap", slots_CVSN[:, 0].shape, slots_CVSN.dtype)
        count_CVN = slots_CVSN[:, :, 0].new_empty(slots_CVSN.shape[:2] + slots_CVSN.shape[3:], dtype=torch.float64)
        for variant in range(slots_CVSN.shape[1]):
            torch.gt(slots_CVSN[:, variant], 0, out=high_CSN)  # as numbers: a third of the time of bools
            count_CVN[:, variant] = high_CSN.sum(1)  # whole numbers, which float32 holds exactly
        return {
            "high": value_sums(obs, count_CVN),
            "all": obs.once(_slots_of_values, value_of_variants(obs), obs.aligned_mask),
        }


def _slots_of_values(value_CVA: Tensor, mask_CVS: Tensor) -> Tensor:
    """(C, A, 1) float64: shared slots of the variants with each value."""
    return value_CVA.mT @ mask_CVS.double().sum(2, keepdim=True)


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

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """See `Statistic.summands`. Outputs `won`: (C, A, N), and `all`: (C, A, 1)."""
        slots_CVSN = obs.slots["neuron"]
        pair_CVV = obs.once(pairs_shared, obs.aligned_mask)
        count, variants, slots, columns = slots_CVSN.shape
        ahead_CSN = obs.room("gap", (count, slots, columns), slots_CVSN.dtype)
        lead_CVN = slots_CVSN.new_zeros(count, variants, columns)
        for (one, two), both_C1 in zip(combinations(range(variants), 2), obs.once(_both, pair_CVV), strict=True):
            torch.sub(slots_CVSN[:, one], slots_CVSN[:, two], out=ahead_CSN)
            ahead_CN = ahead_CSN.sign_().sum(1).mul_(both_C1)
            lead_CVN[:, one] += ahead_CN  # slots won less lost, a whole number: what one has, the other lacks
            lead_CVN[:, two] -= ahead_CN
        others_CV1 = obs.once(_others, pair_CVV)
        won_CVN = lead_CVN.double().mul_(obs.once(slot_share, obs.slot_weight)).add_(others_CV1).div_(2)
        return {
            "won": value_sums(obs, won_CVN),
            "all": obs.once(_of_values, value_of_variants(obs), others_CV1),
        }


def _both(pair_CVV: Tensor) -> tuple[Tensor, ...]:
    """(C, 1) for each pair of variants: 1 where both were seen."""
    variants = range(pair_CVV.shape[1])
    return tuple(pair_CVV[:, one, two].unsqueeze(1) for one, two in combinations(variants, 2))


def _others(pair_CVV: Tensor) -> Tensor:
    """(C, V, 1) float64: how many others each variant is compared with."""
    return (pair_CVV.sum(1) + pair_CVV.sum(2)).unsqueeze(-1)


def _of_values(value_CVA: Tensor, of_variants_CV1: Tensor) -> Tensor:
    """(C, A, 1) float64: sums over the variants with each value."""
    return value_CVA.mT @ of_variants_CV1


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
