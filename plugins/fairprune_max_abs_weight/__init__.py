"""Importance by the largest weights of a neuron: max_j |W_gate[i, j]| + max_j |W_up[i, j]|.

Source: the formula printed in the Fairness Pruning article (July 2025). Its notebook and optipfair compute another one under
the same name; that is `peak-to-peak`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, SiteContext


@dataclass(frozen=True, kw_only=True)
class MaxAbsWeight(ImportanceScorer):
    """Largest absolute gate weight plus largest absolute up weight. Unit: weight."""

    def needs(self) -> Needs:
        """Weights only: no forward."""
        return Needs(weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return torch.stack([at.weights[role].abs().amax(1) for role in ("gate", "up") if role in at.weights]).double().sum(0)
