"""Bias as an effect size: how far an attribute value moves a neuron, in standard deviations.

paired-effect   d_z = |mean| / sd over contrasts of a value's deviation from the mean of its contrast; largest over values
eta-squared     between-value over total sum of squares of the mean activation, contrasts not paired
d-prime         |mean of a value - mean of the others| / pooled standard deviation, contrasts not paired; largest over values

Source: Cohen 1988 (d_z, eta squared); Green and Swets 1966 (d'); Benjamini and Hochberg 1995. docs/method/effects.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Needs,
    Observation,
    SiteContext,
    Statistic,
    ValueDeviation,
    ValueSums,
    deviations,
    slot_means,
    value_counts,
    value_sums,
)

TINY = 1e-12
UNPAIRED = {"zero-difference": "groups are compared without pairing, so equal variants of different contrasts still differ"}


@dataclass(frozen=True, kw_only=True)
class DeviationSquares(Statistic):
    """For each value the sum of squares of its deviations from the mean of its contrast."""

    name: str = "deviation-squares"

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """See `Statistic.summands`. Output `sum`: (C, A, N)."""
        return {"sum": value_sums(obs, deviations(obs).square())}


@dataclass(frozen=True, kw_only=True)
class PairedEffect(BiasScorer):
    """d_z of a value's deviation over contrasts, the largest over values. No unit."""

    exemptions: ClassVar[Mapping[str, str]] = {
        "zero-difference": "a ratio of mean to spread: where nothing differs both are rounding, and so is the ratio",
        "precision": "a spread over a few contrasts may be as small as rounding, and then the ratio is as inexact",
        "padding-invariance": "other shapes of a batch are rounded in another way, and a ratio to a small spread makes it large",
    }

    fdr: float = 1.0
    """Expected share of false discoveries over all neurons of the model and all values, by t tests; others get 0. 1: no test."""

    def __post_init__(self) -> None:
        if not 0 < self.fdr <= 1:
            raise ValueError(f"The 'fdr' must be in (0, 1]. Got {self.fdr} instead.")

    def needs(self) -> Needs:
        """Deviations of each value and their squares, from one forward."""
        return Needs(statistics=(ValueDeviation(), DeviationSquares()))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        effect_AN, _ = self._effects(at)
        return effect_AN.amax(0)

    def finish(self, scores: Mapping[str, Tensor], at: Callable[[str], SiteContext]) -> Mapping[str, Tensor]:
        """Sets to 0 what does not survive Benjamini-Hochberg over the whole model."""
        if self.fdr >= 1:
            return scores
        from scipy.stats import false_discovery_control, t

        effects = {name: self._effects(at(name)) for name in scores}
        parts = {name: (n_A1[:, 0] >= 2) for name, (_, n_A1) in effects.items()}
        tested = {name: effect_AN[parts[name]] for name, (effect_AN, _) in effects.items()}
        p_values = [
            torch.from_numpy(2 * t.sf((tested[name] * n_A1[parts[name]].sqrt()).numpy(), (n_A1[parts[name]] - 1).numpy()))
            for name, (_, n_A1) in effects.items()
        ]
        every = torch.cat([p.flatten() for p in p_values])
        if not len(every):
            return {name: torch.zeros_like(score) for name, score in scores.items()}
        survives = torch.from_numpy(false_discovery_control(every.numpy()) <= self.fdr)
        kept = torch.split(survives, [p.numel() for p in p_values])
        return {
            name: (tested[name] * keep.reshape(tested[name].shape)).amax(0) if len(tested[name]) else torch.zeros_like(score)
            for (name, score), keep in zip(scores.items(), kept, strict=True)
        }

    def _effects(self, at: SiteContext) -> tuple[Tensor, Tensor]:
        """(A, N) d_z, 0 for a value in fewer than two contrasts; (A, 1) contrasts."""
        total_AN, n_A1, squares_AN = (
            at.sums[x] for x in ("value-deviation.sum", "value-deviation.count", "deviation-squares.sum")
        )
        mean_AN = total_AN / n_A1.clamp_min(1)
        variance_AN = (squares_AN - n_A1 * mean_AN.square()).clamp_min(0) / (n_A1 - 1).clamp_min(1)
        return (mean_AN.abs() / (variance_AN.sqrt() + TINY)).masked_fill(n_A1 < 2, 0), n_A1


@dataclass(frozen=True, kw_only=True)
class GroupMoments(Statistic):
    """For each value: sum, sum of squares and count over contrasts of the mean activation over the shared slots."""

    name: str = "group-moments"

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """See `Statistic.summands`. Outputs `sum`, `squares`: (C, A, N), and `count`: (C, A, 1)."""
        means_CVN = slot_means(obs)
        return {
            "sum": value_sums(obs, means_CVN),
            "squares": value_sums(obs, means_CVN.square()),
            "count": value_counts(obs),
        }


@dataclass(frozen=True, kw_only=True)
class EtaSquared(BiasScorer):
    """Share of the variance of the mean activation that the attribute value explains. No unit, in [0, 1]."""

    exemptions: ClassVar[Mapping[str, str]] = UNPAIRED

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(GroupMoments(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        total_AN, squares_AN, n_A1 = (at.sums[f"group-moments.{x}"] for x in ("sum", "squares", "count"))
        correction_N = total_AN.sum(0).square() / n_A1.sum().clamp_min(1)
        between_N: Tensor = (total_AN.square() / n_A1.clamp_min(1)).sum(0) - correction_N
        all_N = squares_AN.sum(0) - correction_N
        return (between_N / all_N.clamp_min(1e-24)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class DPrime(BiasScorer):
    """|mean of a value - mean of the others| over the pooled standard deviation, the largest over values. No unit."""

    exemptions: ClassVar[Mapping[str, str]] = UNPAIRED

    def needs(self) -> Needs:
        """The statistic above, from one forward."""
        return Needs(statistics=(GroupMoments(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        total_AN, squares_AN, n_A1 = (at.sums[f"group-moments.{x}"] for x in ("sum", "squares", "count"))
        rest_AN, rest_squares_AN, rest_A1 = (x.sum(0, keepdim=True) - x for x in (total_AN, squares_AN, n_A1))
        within_AN = squares_AN - total_AN.square() / n_A1.clamp_min(1)
        within_AN = within_AN + rest_squares_AN - rest_AN.square() / rest_A1.clamp_min(1)
        sd_AN = (within_AN / (n_A1.sum() - 2).clamp_min(1)).clamp_min(1e-24).sqrt()
        gap_AN: Tensor = (total_AN / n_A1.clamp_min(1) - rest_AN / rest_A1.clamp_min(1)).abs()
        return (gap_AN / sd_AN).masked_fill((n_A1 == 0) | (rest_A1 == 0), 0).amax(0)
