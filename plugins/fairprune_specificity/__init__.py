"""Bias that controls do not show: the share of a neuron's variance over variants that demographic words cause.

specificity = v / (v + v0), v the mean variance over the variants of demographic contrasts of a category, v0 the same over control
contrasts, whose variants differ by words that name no group. A neuron that reacts to any change of a word gets 1/2 or less; one that
reacts to groups alone gets 1. Source: this project, docs/method/specificity.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, Pass, SiteContext, Statistic, StreamSums

FLOOR = 1e-6
"""Part of the mean variance of a site over controls that is added to every neuron's: silent neurons are not specific."""


@dataclass(frozen=True, kw_only=True)
class VarianceOfStreams(Statistic):
    """Mean over slots of the variance over variants, of demographic and of control contrasts, and 1 if any slot was seen."""

    name: str = "variance-of-streams"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of each stream."""
        return (Pass(), Pass(stream="controls"))

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mean`: (C, 1, N), and `seen`: (C, 1, 1)."""
        shared_CS1 = obs.aligned_mask.any(1).unsqueeze(-1)
        variance_CSN = obs.aligned_variance["neuron"].double().masked_fill(~shared_CS1, 0)
        return {"mean": torch.bmm(obs.slot_weight.unsqueeze(1), variance_CSN), "seen": obs.reached}


@dataclass(frozen=True, kw_only=True)
class Specificity(BiasScorer):
    """Variance on demographic contrasts over that plus the variance on controls. No unit, in [0, 1]."""

    def needs(self) -> Needs:
        """One forward of the demographic contrasts and one of the controls."""
        return Needs(statistics=(VarianceOfStreams(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`; raises `ValueError` where the prompts have no control contrasts."""
        controls = at.of("controls")
        if controls.count == 0:
            raise ValueError("specificity needs control contrasts, and the prompts have none")
        own_N, other_N = _mean(at), _mean(controls)
        return own_N / (own_N + other_N + FLOOR * other_N.mean() + torch.finfo(torch.float64).tiny)


def _mean(sums: SiteContext | StreamSums) -> Tensor:
    mean_N: Tensor = sums.sums["variance-of-streams.mean"][0] / sums.sums["variance-of-streams.seen"][0].clamp_min(1)
    return mean_N
