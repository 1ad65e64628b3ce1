"""Bias by differences of a neuron's activation between the variants of a contrast: four relatives of `variance`.

mean-abs-difference    mean over pairs of |difference of the means over all tokens|, gate and up: optipfair 0.4.2
token-abs-difference   mean over pairs and slots of |difference|: the same without cancelling within a text
signed-difference      |mean over contrasts of the signed deviation of an attribute value|: opposite signs cancel
output-variance        variance over the variants x squared norm of the output weights: variance of what is written

docs/method/differences.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Needs,
    Observation,
    SiteContext,
    Statistic,
    Tap,
    ValueDeviation,
    shared_slots,
    zero_outside,
)


def _pairs(seen_CV: Tensor) -> Tensor:
    """(C, V, V) float64: 1 for each pair of variants that both were seen, once."""
    return (seen_CV.unsqueeze(1) & seen_CV.unsqueeze(2)).triu(1).double()


@dataclass(frozen=True, kw_only=True)
class PooledDifference(Statistic):
    """Mean over pairs and over gate and up of |difference of the means over all tokens|, and 1 where there was a pair."""

    name: str = "pooled-difference"
    taps: frozenset[Tap] = frozenset({"gate", "up"})

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mean`: (C, 1, N), and `seen`: (C, 1, 1)."""
        tokens_CV1, pair_CVV = obs.mask.sum(2).unsqueeze(-1), _pairs(obs.mask.any(2))
        found = []
        for tap in sorted(self.taps):
            mean_CVN = zero_outside(obs.acts[tap], obs.mask).double().sum(2) / tokens_CV1.clamp_min(1)
            pairs = combinations(range(mean_CVN.shape[1]), 2)
            gaps = [(mean_CVN[:, a] - mean_CVN[:, b]).abs_().mul_(pair_CVV[:, a, b].unsqueeze(1)) for a, b in pairs]
            found.append(torch.stack(gaps).sum(0))
        pairs_C1 = pair_CVV.sum((1, 2)).unsqueeze(1)
        mean_CN = torch.stack(found).mean(0) / pairs_C1.clamp_min(1)
        return {"mean": mean_CN.unsqueeze(1), "seen": (pairs_C1 > 0).double().unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class MeanAbsDifference(BiasScorer):
    """Mean over contrasts of |difference of token means|, averaged over gate and up. Unit: activation before the nonlinearity."""

    def needs(self) -> Needs:
        """Gate and up taps, from one forward."""
        return Needs(statistics=(PooledDifference(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        return at.sums["pooled-difference.mean"][0] / at.sums["pooled-difference.seen"][0].clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class SlotDifference(Statistic):
    """Mean over pairs of variants and slots of |difference|, and 1 where a slot was shared."""

    name: str = "slot-difference"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mean`: (C, 1, N), and `seen`: (C, 1, 1)."""
        acts_CVSN = shared_slots(obs)
        pair_CVV = _pairs(obs.aligned_mask.any(2))
        total_CN = acts_CVSN.new_zeros(acts_CVSN.shape[0], acts_CVSN.shape[-1])
        for one, two in combinations(range(acts_CVSN.shape[1]), 2):  # no tensor of all pairs: slots are many
            gap_CN = torch.einsum("cs,csn->cn", obs.slot_weight, (acts_CVSN[:, one] - acts_CVSN[:, two]).abs_())
            total_CN += gap_CN.mul_(pair_CVV[:, one, two].unsqueeze(1))
        pairs_C1 = pair_CVV.sum((1, 2)).unsqueeze(1)
        return {"mean": (total_CN / pairs_C1.clamp_min(1)).unsqueeze(1), "seen": (pairs_C1 > 0).double().unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class TokenAbsDifference(BiasScorer):
    """Mean over contrasts, pairs of variants and slots of |difference|. Unit: activation."""

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(SlotDifference(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        return at.sums["slot-difference.mean"][0] / at.sums["slot-difference.seen"][0].clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class SignedDifference(BiasScorer):
    """|mean over contrasts of a value's deviation|, the largest over values. Unit: activation."""

    def needs(self) -> Needs:
        """Deviations of each value, from one forward."""
        return Needs(statistics=(ValueDeviation(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        mean_AN: Tensor = at.sums["value-deviation.sum"] / at.sums["value-deviation.count"].clamp_min(1)
        return mean_AN.abs().amax(0)


@dataclass(frozen=True, kw_only=True)
class VarianceOverVariants(Statistic):
    """Mean over slots of the variance over variants, and 1 if any slot was seen."""

    name: str = "variance-over-variants"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mean`: (C, 1, N), and `seen`: (C, 1, 1)."""
        variance_CSN = zero_outside(obs.aligned_variance["neuron"], obs.aligned_mask.any(1))
        return {"mean": torch.bmm(obs.slot_weight.unsqueeze(1), variance_CSN.double()), "seen": obs.reached}


@dataclass(frozen=True, kw_only=True)
class OutputVariance(BiasScorer):
    """Variance over the variants times the squared norm of the output weights. Unit: square of the block's output."""

    def needs(self) -> Needs:
        """The statistic above, from one forward, and the weights."""
        return Needs(statistics=(VarianceOverVariants(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        mean_N = at.sums["variance-over-variants.mean"][0] / at.sums["variance-over-variants.seen"][0].clamp_min(1)
        return mean_N * at.weights["out"].double().square().sum(1)
