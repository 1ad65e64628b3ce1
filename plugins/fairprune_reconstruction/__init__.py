"""Importance by reconstruction: the error of the block's output when the other neurons make up for one that is missing.

error[i] = |W[:, i]|^2 / (H^-1)_ii, H = X'X + damping x mean diagonal x I, X the activations on calibration text. Source: optimal brain
surgeon (Hassibi and Stork 1992) for whole columns, as SparseGPT (Frantar and Alistarh 2023) and ZipLM (2023). docs/method/obs.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, Observation, Pass, SiteContext, Statistic


@dataclass(frozen=True, kw_only=True)
class Gram(Statistic):
    """X'X of the neurons of a site: as many rows as neurons, whose sums take 8 N^2 bytes a site."""

    name: str = "gram"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `gram`: (C, N, N)."""
        acts_CTN = obs.acts["neuron"][:, 0].double().masked_fill(~obs.mask[:, 0].unsqueeze(-1), 0)
        return {"gram": acts_CTN.mT @ acts_CTN}


@dataclass(frozen=True, kw_only=True)
class OptimalBrainSurgeon(ImportanceScorer):
    """Squared error of the block's output without a neuron, the others refitted. Unit: square of the block's output, over tokens."""

    damping: float = 0.01
    """Part of the mean of the diagonal that is added to it: without it, neurons beyond the number of tokens have no inverse."""

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise ValueError(f"The 'damping' must be above 0. Got {self.damping} instead.")

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(Gram(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        gram_NN = at.sums["gram.gram"]
        size = self.damping * gram_NN.diagonal().mean() + 1e-12
        damped_NN = gram_NN + size * torch.eye(len(gram_NN), dtype=torch.float64)
        inverse_NN = torch.cholesky_inverse(torch.linalg.cholesky(damped_NN))
        return at.weights["out"].double().square().sum(1) / inverse_NN.diagonal()
