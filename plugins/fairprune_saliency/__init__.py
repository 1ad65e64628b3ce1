"""Saliency of a neuron's weights: |weight x gradient|, or its square, summed over its gate, up and output weights.

snip              importance: sum over documents of |w dNLL/dw|
fisher            importance: half of the sum of w^2 F_ww, F the diagonal of the empirical Fisher matrix over documents
snip-difference   bias: |w dJ/dw|, J the next-token divergence, less as large a share of `snip` on text; 0 where that is more

The gradient of a neuron's weights is the outer product of taps: no gradient of a parameter is ever made. Source: SNIP (Lee et al.
2019); the difference of safety and utility scores of Wei et al. (ICML 2024); optimal brain damage (LeCun et al. 1990).
docs/method/saliency.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    ImportanceScorer,
    Needs,
    NegativeLogLikelihood,
    NextTokenDivergence,
    Observation,
    Pass,
    SiteContext,
    Statistic,
    Tap,
)

TEXT = Pass(stream="calibration", objective=NegativeLogLikelihood(), logits="all")
BIAS = Pass(objective=NextTokenDivergence())


@dataclass(frozen=True, kw_only=True)
class WeightSaliency(Statistic):
    """Sum over a neuron's weights of |weight x gradient| ** power, of the objective of a contrast or document."""

    optional_taps: ClassVar[frozenset[Tap]] = frozenset({"mlp_input", "gate", "up", "down"})
    name: str = "weight-saliency"
    taps: frozenset[Tap] = frozenset({"mlp_input", "gate", "up", "neuron", "down"})
    power: Literal[1, 2] = 1
    of: tuple[Pass, ...] = (TEXT,)

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward for each objective."""
        return self.of

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `terms`: (C, 1, N)."""
        outside_CVT1 = ~obs.mask.unsqueeze(-1)

        def shown(values: Mapping[Tap, Tensor], tap: Tap) -> Tensor:
            wide = torch.promote_types(values[tap].dtype, torch.float32)
            return values[tap].to(wide).masked_fill(outside_CVT1, 0).flatten(1, 2)

        total_CN = torch.zeros((), dtype=torch.float64)
        for role in ("gate", "up"):
            if role in obs.weights and role in obs.grads:
                slope_CNH = shown(obs.grads, role).mT @ shown(obs.acts, "mlp_input")
                total_CN = total_CN.to(slope_CNH.device) + self._terms(obs.weights[role], slope_CNH)
        if "down" in obs.grads:
            slope_CNH = shown(obs.acts, "neuron").mT @ shown(obs.grads, "down")
            total_CN = total_CN.to(slope_CNH.device) + self._terms(obs.weights["out"], slope_CNH)
        return {"terms": total_CN.unsqueeze(1)}

    def _terms(self, weight_NH: Tensor, slope_CNH: Tensor) -> Tensor:
        product_CNH = slope_CNH.mul_(weight_NH.to(slope_CNH)).abs_()
        return (product_CNH if self.power == 1 else product_CNH.square_()).double().sum(2)


SLOPES = WeightSaliency()
SQUARES = WeightSaliency(name="weight-saliency-squared", power=2)
BOTH = WeightSaliency(name="weight-saliency-both", of=(BIAS, TEXT))


@dataclass(frozen=True, kw_only=True)
class Snip(ImportanceScorer):
    """Sum over documents of |w dNLL/dw| over a neuron's weights. Unit: nats."""

    def needs(self) -> Needs:
        """One gradient pass over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(SLOPES,), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums["weight-saliency.terms"][0]


@dataclass(frozen=True, kw_only=True)
class Fisher(ImportanceScorer):
    """Mean over documents of (w dNLL/dw)^2 / 2, summed over a neuron's weights. Unit: nats squared."""

    def needs(self) -> Needs:
        """One gradient pass over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(SQUARES,), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `ImportanceScorer.score`."""
        return at.sums["weight-saliency-squared.terms"][0] / (2 * max(at.count, 1))


@dataclass(frozen=True, kw_only=True)
class SnipDifference(BiasScorer):
    """Mean over contrasts of |w dJ/dw|, less as large a share of the same on text, at least 0. Unit: nats."""

    minus: float = 1.0
    """How much of the share on text is taken off; 0: the saliency for the divergence alone."""

    def __post_init__(self) -> None:
        if self.minus < 0:
            raise ValueError(f"The 'minus' must not be negative. Got {self.minus} instead.")

    def needs(self) -> Needs:
        """One gradient pass over the contrasts and one over the calibration text, and the weights."""
        return Needs(statistics=(BOTH,), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        bias_N = at.sums["weight-saliency-both.terms"][0] / at.observed.clamp_min(1)
        text_N = at.of("calibration").sums["weight-saliency-both.terms"][0]
        share: Tensor = bias_N.sum() / text_N.sum().clamp_min(1e-300)
        return (bias_N - self.minus * share * text_N).clamp_min(0)
