"""Bias as expertise: how well a neuron's activation tells an attribute value from all texts with other values, over all contrasts.

Order statistics over contrasts are no sums. A first reading of the prompts finds the mean, spread, lowest and highest activation of
each neuron; a second counts texts in bins between them. Source: Suau et al. 2020 and 2024 (expert units, AurA); Hanley and McNeil
1982 for the area. docs/method/expertise.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Needs,
    Observation,
    Reduction,
    SiteContext,
    Statistic,
    slot_means,
    value_of_variants,
)

SPREAD = 8.0
"""Bins are equally wide in asinh(8 z): near the mean about an eighth of a standard deviation, further out by factors."""


@dataclass(frozen=True, kw_only=True)
class TextMoments(Statistic):
    """Over the texts of a contrast: how many, the sum of their activations (`slot_means`), and of the squares."""

    name: str = "text-moments"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `moments`: (C, 3, N)."""
        text_CVN, seen_CV1 = slot_means(obs), obs.aligned_mask.any(2).unsqueeze(-1)
        return {"moments": torch.stack([seen_CV1.double().expand_as(text_CVN), text_CVN, text_CVN.square()], 1).sum(2)}


@dataclass(frozen=True, kw_only=True)
class Highest(Statistic):
    """The highest activation of a text."""

    reduce: ClassVar[Reduction] = "max"
    name: str = "highest-text"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `value`: (C, 1, N)."""
        return {"value": slot_means(obs).masked_fill(~obs.aligned_mask.any(2).unsqueeze(-1), -math.inf).amax(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True)
class Lowest(Statistic):
    """The lowest activation of a text."""

    reduce: ClassVar[Reduction] = "min"
    name: str = "lowest-text"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `value`: (C, 1, N)."""
        return {"value": slot_means(obs).masked_fill(~obs.aligned_mask.any(2).unsqueeze(-1), math.inf).amin(1, keepdim=True)}


@dataclass(frozen=True, kw_only=True)
class TextHistogram(Statistic):
    """For each attribute value, how many texts lie at each of some places between the lowest and the highest activation of the category;
    a text between two places counts for both, for the nearer one more."""

    name: str = "text-histogram"
    bins: int = 16

    def after(self) -> Sequence[Statistic]:
        """The moments and the extremes, by category."""
        return (TextMoments(), Highest(), Lowest())

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `counts`: (C, A * bins, N), the bins of a value together."""
        count_GN, sum_GN, square_GN = obs.before["text-moments.moments"].unbind(1)
        mean_GN = sum_GN / count_GN.clamp_min(1)
        width_GN = (square_GN / count_GN.clamp_min(1) - mean_GN.square()).clamp_min(0).sqrt()

        def place(values: Tensor) -> Tensor:
            mean, width = (each[obs.category].unsqueeze(1) for each in (mean_GN, width_GN))
            return torch.asinh(SPREAD * (values - mean) / width.where(width > 0, 1.0))

        low_C1N, high_C1N = (place(obs.before[f"{name}-text.value"][obs.category]) for name in ("lowest", "highest"))
        range_C1N = (high_C1N - low_C1N).clamp_min(1e-300)
        at_CVN = ((place(slot_means(obs)) - low_C1N) / range_C1N).clamp(0, 1) * (self.bins - 1)
        bin_CVN = at_CVN.floor().clamp_max(self.bins - 2)
        value_CVA, columns = value_of_variants(obs), at_CVN.shape[2]
        counts_CABN = at_CVN.new_zeros((*value_CVA.shape[::2], self.bins, columns))
        for variant in range(at_CVN.shape[1]):
            for further in (0, 1):  # the two bins beside it, by how near they are: no jump at an edge
                share_CN = 1 - (at_CVN[:, variant] - bin_CVN[:, variant] - further).abs()
                own_CA1N = (value_CVA[:, variant].unsqueeze(-1) * share_CN.unsqueeze(1)).unsqueeze(2)
                index_CN = bin_CVN[:, variant].long() + further
                counts_CABN.scatter_add_(2, index_CN[:, None, None].expand_as(own_CA1N), own_CA1N)
        return {"counts": counts_CABN.flatten(1, 2)}


@dataclass(frozen=True, kw_only=True)
class Expertise(BiasScorer):
    """|2 AUC - 1| of a value against all texts with others, the largest over values; two texts at one place count half. In [0, 1]."""

    exemptions: ClassVar[Mapping[str, str]] = {
        "zero-difference": "values are compared over all texts, so equal variants of different contrasts still differ",
        "precision": "a value at the edge of a bin of the histogram falls on either side of it",
    }
    bins: int = 16
    """Of the histogram. More are more exact, and take more memory."""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"The 'bins' must be at least 2. Got {self.bins} instead.")

    def needs(self) -> Needs:
        """The histogram, from a second reading."""
        return Needs(statistics=(TextHistogram(bins=self.bins),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        flat_RN = at.sums["text-histogram.counts"]
        counts_ABN = flat_RN.reshape(-1, self.bins, flat_RN.shape[1])
        others_ABN = counts_ABN.sum(0, keepdim=True) - counts_ABN
        below_ABN = others_ABN.cumsum(1) - others_ABN / 2
        pairs_AN = counts_ABN.sum(1) * others_ABN.sum(1)
        area_AN = (counts_ABN * below_ABN).sum(1) / pairs_AN.clamp_min(1)
        told_AN: Tensor = (2 * area_AN - 1).abs().where(pairs_AN > 0, 0.0)
        return told_AN.amax(0)
