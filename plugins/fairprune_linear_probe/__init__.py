"""Bias by a linear probe: |weight| x spread of a neuron in a ridge discriminant of each attribute value; largest over values.

w = (C + ridge x mean diagonal x I)^-1 m, C the covariance within contrasts of the mean activations, m the mean deviation of a value.
C is never held as (N, N): it is summed as C times a fixed random matrix of `rank` columns, and rebuilt by Nystrom's method, exact where
the deviations have no more than that many dimensions. Source: Fisher 1936; Friedman 1989 for the ridge; Alain and Bengio 2016 for probes;
Halko et al. 2011, algorithm 5.5. docs/method/linear-probe.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, deviations, value_of_variants

CUT = 1e-9
"""Directions of less variance than this part of the largest are rounding."""
FLOOR = 1e-20
"""Added to the ridge: deviations around 1e-10 of an activation's unit are rounding, and no probe."""


def sketch(units: int, rank: int) -> Tensor:
    """(N, rank) float64, normal, the same for the same numbers; the identity where it is wide enough."""
    if rank >= units:
        return torch.eye(units, dtype=torch.float64)
    return torch.randn(units, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(units))


@dataclass(frozen=True, kw_only=True)
class SketchedCovariance(Statistic):
    """Scatter of deviations times a fixed matrix, its diagonal, and for each value the sum of its deviations."""

    name: str = "sketched-covariance"
    rank: int = 64

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `scatter`: (C, rank, N), `squares`: (C, 1, N), `sum`: (C, A, N), `count`: (C, A, 1)."""
        off_CVN, value_CVA = deviations(obs), value_of_variants(obs)
        seen_CVN = off_CVN * value_CVA.sum(2, keepdim=True)
        projected_CVR = seen_CVN @ sketch(off_CVN.shape[-1], self.rank).to(off_CVN.device)
        return {
            "scatter": projected_CVR.mT @ seen_CVN,
            "squares": seen_CVN.square().sum(1, keepdim=True),
            "sum": value_CVA.mT @ off_CVN,
            "count": value_CVA.sum(1).unsqueeze(-1),
        }


@dataclass(frozen=True, kw_only=True)
class LinearProbe(BiasScorer):
    """|weight| x standard deviation of a neuron in a ridge discriminant of a value, the largest over values. No unit."""

    ridge: float = 0.1
    """Part of the mean variance that is added to each neuron's: large, neurons count alone; small, together."""
    rank: int = 64
    """Columns of the sketch of the covariance, and rows of sums for each category."""

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise ValueError(f"The 'ridge' must be above 0. Got {self.ridge} instead.")
        if self.rank < 1:
            raise ValueError(f"The 'rank' must be at least 1. Got {self.rank} instead.")

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(self._statistic,))

    @property
    def _statistic(self) -> SketchedCovariance:
        return SketchedCovariance(name=f"sketched-covariance-{self.rank}", rank=self.rank)

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        name = self._statistic.name
        n_A1 = at.sums[f"{name}.count"]
        total = n_A1.sum().clamp_min(1)
        variance_N = at.sums[f"{name}.squares"][0] / total
        mean_AN = at.sums[f"{name}.sum"] / n_A1.clamp_min(1)
        ridge = self.ridge * variance_N.mean() + FLOOR
        factor_NR = self._factor(at.sums[f"{name}.scatter"].T / total)
        inner_RR = factor_NR.T @ factor_NR + ridge * torch.eye(factor_NR.shape[1], dtype=torch.float64)
        shrunk_NA = factor_NR @ torch.linalg.solve(inner_RR, factor_NR.T @ mean_AN.T)
        weight_NA: Tensor = (mean_AN.T - shrunk_NA) / ridge
        return weight_NA.abs().amax(1) * variance_N.sqrt()

    def _factor(self, product_NR: Tensor) -> Tensor:
        """(N, r): a root of the covariance, from its product with the sketch."""
        core_RR = sketch(len(product_NR), self.rank).T @ product_NR
        values_R, vectors_RR = torch.linalg.eigh((core_RR + core_RR.T) / 2)
        kept_R = values_R > CUT * values_R.max()
        root_NR: Tensor = product_NR @ vectors_RR[:, kept_R] / values_R[kept_R].sqrt()
        return root_NR
