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
    any_pair,
    mean_variance,
    pair_gaps,
    pairs_shared,
    zero_outside,
)


@dataclass(frozen=True, kw_only=True)
class PooledDifference(Statistic):
    """Mean over pairs and over gate and up of |difference of the means over all tokens|, and 1 where there was a pair."""

    name: str = "pooled-difference"
    taps: frozenset[Tap] = frozenset({"gate", "up"})

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mean`: (C, 1, N), and `seen`: (C, 1, 1)."""
        pair_CVV = obs.once(pairs_shared, obs.mask)
        means = []
        for tap in sorted(self.taps):
            acts_CVTN = zero_outside(obs, obs.acts[tap], obs.mask)
            wide = torch.promote_types(acts_CVTN.dtype, torch.float32)
            means.append(obs.once(_shares, obs.mask, wide.itemsize) @ acts_CVTN.to(wide))
        mean_CN = pair_gaps(obs, torch.cat(means, 2), obs.once(_halves, obs.mask), pair_CVV)
        return {"mean": mean_CN.unsqueeze(1), "seen": obs.once(any_pair, pair_CVV)}


def _shares(mask_CVT: Tensor, itemsize: int) -> Tensor:
    """(C, V, 1, T), in float32 or float64: weights of a mean over the tokens of each variant."""
    share_CV1T = (mask_CVT / mask_CVT.sum(2, keepdim=True).clamp_min(1)).unsqueeze(2)
    return share_CV1T.double() if itemsize == 8 else share_CV1T.float()


def _halves(mask_CVT: Tensor) -> Tensor:
    """(C, 2) float64: weights of gate and up in their mean."""
    return torch.full((len(mask_CVT), 2), 0.5, dtype=torch.float64, device=mask_CVT.device)


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
        pair_CVV = obs.once(pairs_shared, obs.aligned_mask)
        mean_CN = pair_gaps(obs, obs.slots["neuron"], obs.slot_weight, pair_CVV)
        return {"mean": mean_CN.unsqueeze(1), "seen": obs.once(any_pair, pair_CVV)}


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
        return {"mean": mean_variance(obs), "seen": obs.reached}


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
