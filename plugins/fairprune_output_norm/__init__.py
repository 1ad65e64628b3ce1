"""Importance by what a neuron writes: the norm of its activation over calibration text times the norm of its output weights.

norm2(X_i) * norm2(W[:, i]). Forward only. Source: Wanda (Sun et al. 2024) in its structured form, with the 2-norm of the output column in
place of the mean absolute weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, Observation, Pass, SiteContext, Statistic


@dataclass(frozen=True, kw_only=True)
class SquareSum(Statistic):
    """One row a document: the sum over its tokens of the squared activation."""

    name: str = "square-sum"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `squares`: (C, 1, N)."""
        acts = obs.acts["neuron"].double() * obs.mask.unsqueeze(-1)
        return {"squares": acts.square().sum((1, 2)).unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class OutputNorm(ImportanceScorer):
    """Activation norm times output-weight norm. Unit: activation of the block's output."""

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(SquareSum(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums["square-sum.squares"][0].sqrt() * at.weights["out"].double().norm(dim=1)
