"""Importance by the size of a neuron's input weights: three relatives of `max-abs-weight`, and a control.

weight-variance    Var(gate row) + Var(up row), unbiased: VOW of optipfair 0.4.2
product-of-norms   |gate row|_1 x |up row|_1: PON of optipfair 0.4.2
l2-norm            |gate row|_2 + |up row|_2: L2 of optipfair 0.4.2
random             drawn by chance: the control that a score must beat

In a block without a gate only the up row counts. docs/method/weight-norms.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, SiteContext


def _rows(at: SiteContext) -> list[Tensor]:
    """Gate and up weights, (N, H) float64, as far as there are both."""
    return [at.weights[role].double() for role in ("gate", "up") if role in at.weights]


@dataclass(frozen=True, kw_only=True)
class WeightVariance(ImportanceScorer):
    """Variance of the gate row plus variance of the up row. Unit: weight squared."""

    def needs(self) -> Needs:
        """Weights only: no forward."""
        return Needs(weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return torch.stack([rows_NH.var(1) for rows_NH in _rows(at)]).sum(0)


@dataclass(frozen=True, kw_only=True)
class ProductOfNorms(ImportanceScorer):
    """1-norm of the gate row times 1-norm of the up row. Unit: weight squared, without a gate weight."""

    def needs(self) -> Needs:
        """Weights only: no forward."""
        return Needs(weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return torch.stack([rows_NH.abs().sum(1) for rows_NH in _rows(at)]).prod(0)


@dataclass(frozen=True, kw_only=True)
class L2Norm(ImportanceScorer):
    """2-norm of the gate row plus 2-norm of the up row. Unit: weight."""

    def needs(self) -> Needs:
        """Weights only: no forward."""
        return Needs(weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return torch.stack([torch.linalg.vector_norm(rows_NH, dim=1) for rows_NH in _rows(at)]).sum(0)


@dataclass(frozen=True, kw_only=True)
class RandomImportance(ImportanceScorer):
    """Drawn uniformly from [0, 1) by the run's seed. No unit."""

    exemptions: ClassVar[Mapping[str, str]] = {"permutation-equivariance": "scores are drawn by place, whatever the neuron"}

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return torch.rand(at.site.units * at.site.unit_width, generator=at.generator, dtype=torch.float64)
