"""Bias as the mean absolute deviation of a neuron's activation from its mean over the variants. Source: this template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, stack

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic


@dataclass(frozen=True, kw_only=True)
class Deviation(Statistic):
    """Two rows a contrast: mean over aligned slots and variants of |activation - mean over variants|, and 1 if any slot was seen."""

    name: str = "deviation"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        seen_CVS1 = obs.aligned_mask.unsqueeze(-1)
        acts_CVSN = obs.aligned["neuron"] * seen_CVS1
        mean_C1SN = acts_CVSN.sum(1, keepdim=True) / seen_CVS1.sum(1, keepdim=True).clamp_min(1)
        away_CVSN = (acts_CVSN - mean_C1SN).abs() * seen_CVS1
        count_C1 = seen_CVS1.sum((1, 2))
        rows_CN = away_CVSN.sum((1, 2)) / count_C1.clamp_min(1)
        return {"rows": stack([rows_CN, (count_C1 > 0).double().expand_as(rows_CN)], 1)}


@dataclass(frozen=True, kw_only=True)
class MeanDeviation(BiasScorer):
    """Mean over contrasts of the deviation above. Unit: activation, or its `power`."""

    power: float = 1.0
    """Raise the mean to this power: a field of the dataclass is an option, here `--bias.power 2`."""

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"The 'power' must be above 0. Got {self.power} instead.")

    def needs(self) -> Needs:
        return Needs(statistics=(Deviation(),))

    def score(self, at: SiteContext) -> Tensor:
        total_N, contrasts_N = at.sums["deviation.rows"]
        mean_N: Tensor = total_N / contrasts_N.clamp_min(1)
        return mean_N.pow(self.power)
