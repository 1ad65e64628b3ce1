"""Importance by the span of a neuron's weights: (max + |min|) of its gate row plus the same of its up row.

Source: the notebook of the Fairness Pruning article, and optipfair 0.4.2 under the name `MAW`. Where a row has both signs this is
its peak-to-peak range; where all weights have one sign, |min| still counts as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, SiteContext


@dataclass(frozen=True, kw_only=True)
class PeakToPeak(ImportanceScorer):
    """Sum over the gate and up rows of (max + |min|). Unit: weight."""

    def needs(self) -> Needs:
        """Weights only: no forward."""
        return Needs(weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        rows = [at.weights[role].double() for role in ("gate", "up") if role in at.weights]
        return torch.stack([row.amax(1) + row.amin(1).abs() for row in rows]).sum(0)
