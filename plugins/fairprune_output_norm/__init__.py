"""Importance by what a neuron writes: the norm of its activation over calibration text times the norm of its output weights.

norm2(X_i) * norm2(W[:, i]). Forward only. Source: Wanda (Sun et al. 2024) in its structured form, with the 2-norm of the output column in
place of the mean absolute weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, SiteContext, SquareSum


@dataclass(frozen=True, kw_only=True)
class OutputNorm(ImportanceScorer):
    """Activation norm times output-weight norm. Unit: activation of the block's output."""

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(SquareSum(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        norm_N = at.sums["square-sum.squares"][0].sqrt()
        written_N: Tensor = torch.linalg.vector_norm(at.weights["out"].double(), dim=1)
        return norm_N * written_N
