"""Importance by a neuron's activations on calibration text, mostly times its weights: four relatives of `output-norm`.

activation-norm       sqrt(sum over documents of (mean over tokens of |X_i|)^2): Minitron (Muralidharan et al. 2024)
wanda                 mean over rows of |W[:, i]| x |X_i|_2: Wanda (Sun et al. 2024), structured, as FLAP's WIFN
input-variance        Var(X_i) x |W[:, i]|_2^2: FLAP's WIFV (An et al. 2024)
peak-to-peak-hybrid   (peak-to-peak of gate, up and output weights, each over its largest) x sum of |X_i|_2 over documents: optipfair 0.4.2

docs/method/activation-norms.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, Observation, Pass, SiteContext, SquareSum, Statistic


def _shown(obs: Observation) -> tuple[Tensor, Tensor]:
    """(C, T, N) float64 activations of documents, 0 outside the mask; (C, 1) float64 tokens."""
    mask_CT1 = obs.mask[:, 0].unsqueeze(-1)
    return obs.acts["neuron"][:, 0].double().masked_fill(~mask_CT1, 0), mask_CT1.sum(1).double()


@dataclass(frozen=True, kw_only=True)
class TextSums(Statistic):
    """Of each document: the sum of activations over its tokens, and how many tokens."""

    name: str = "text-sums"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `sum`: (C, 1, N), and `tokens`: (C, 1, 1)."""
        acts_CTN, tokens_C1 = _shown(obs)
        return {"sum": acts_CTN.sum(1, keepdim=True), "tokens": tokens_C1.unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class DocumentNorms(Statistic):
    """Of each document: the 2-norm of the activation over its tokens, and the square of its mean absolute activation."""

    name: str = "document-norms"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `norm` and `mean-squared`: (C, 1, N)."""
        acts_CTN, tokens_C1 = _shown(obs)
        mean_CN = acts_CTN.abs().sum(1) / tokens_C1.clamp_min(1)
        return {"norm": acts_CTN.square().sum(1, keepdim=True).sqrt(), "mean-squared": mean_CN.square().unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class ActivationNorm(ImportanceScorer):
    """2-norm over documents of the mean absolute activation over tokens. Unit: activation."""

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text."""
        return Needs(statistics=(DocumentNorms(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums["document-norms.mean-squared"][0].sqrt()


@dataclass(frozen=True, kw_only=True)
class Wanda(ImportanceScorer):
    """2-norm of the activation times the mean absolute output weight. Unit: activation of the block's output."""

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(SquareSum(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums["square-sum.squares"][0].sqrt() * at.weights["out"].double().abs().mean(1)


@dataclass(frozen=True, kw_only=True)
class InputVariance(ImportanceScorer):
    """Variance of the activation over tokens times the squared norm of the output weights. Unit: square of the block's output."""

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(SquareSum(), TextSums()), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        tokens_1 = at.sums["text-sums.tokens"][0].clamp_min(1)
        mean_N = at.sums["text-sums.sum"][0] / tokens_1
        variance_N: Tensor = (at.sums["square-sum.squares"][0] / tokens_1 - mean_N.square()).clamp_min(0)
        return variance_N * at.weights["out"].double().square().sum(1)


@dataclass(frozen=True, kw_only=True)
class PeakToPeakHybrid(ImportanceScorer):
    """Relative peak-to-peak of the weights times the sum over documents of the activation's 2-norm. Unit: activation."""

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(DocumentNorms(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        rows = [at.weights[role].double() for role in ("gate", "up", "out") if role in at.weights]
        peaks = [rows_NH.amax(1) + rows_NH.amin(1).abs() for rows_NH in rows]
        relative_N = torch.stack([peak_N / (peak_N.max() + 1e-8) for peak_N in peaks]).sum(0)
        return relative_N * at.sums["document-norms.norm"][0]
