"""Bias by what a neuron writes into the residual stream: its output weights against directions of the attribute.

steering-projection   E|h| x the largest over values of |<output weights, mean deviation of the layer's output>|
vocabulary-spread     spread over values of the probability of their first tokens when the output weights are read out

Source: FairSteer (2025), for the direction; UniBias (NeurIPS 2024), for the read-out of feed-forward vectors.
docs/method/writing.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Needs,
    Observation,
    SiteContext,
    Statistic,
    Tap,
    ValueSums,
    deviations,
    value_counts,
    value_sums,
)


@dataclass(frozen=True, kw_only=True)
class Steering(Statistic):
    """Mean |activation| over shared slots and variants; for each value its deviation in the layer's output."""

    name: str = "steering"
    taps: frozenset[Tap] = frozenset({"neuron", "layer"})

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """See `Statistic.summands`. Outputs `size`: (C, 1, N), `away`: (C, A, H), and `seen`: (C, 1, 1)."""
        slots_CVSN = obs.slots["neuron"]
        weight_VC1S = obs.once(_weights, obs.aligned_mask, obs.slot_weight, slots_CVSN.dtype.itemsize)
        size_CSN = obs.room("gap", slots_CVSN[:, 0].shape, slots_CVSN.dtype)
        mean_C1N = slots_CVSN.new_zeros(len(slots_CVSN), 1, slots_CVSN.shape[3])
        for variant, weight_C1S in enumerate(weight_VC1S):
            mean_C1N.baddbmm_(weight_C1S, torch.abs(slots_CVSN[:, variant], out=size_CSN))
        return {
            "size": mean_C1N.double(),
            "away": value_sums(obs, deviations(obs, "layer")),
            "count": value_counts(obs),
            "seen": obs.reached,
        }


def _weights(mask_CVS: Tensor, weight_CS: Tensor, itemsize: int) -> Tensor:
    """(V, C, 1, S), in float32 or float64: weights of a mean over the slots of all variants."""
    variants_C11 = mask_CVS.any(2).sum(1).clamp_min(1)[:, None, None]
    weight_VC1S = (mask_CVS * weight_CS.unsqueeze(1) / variants_C11).transpose(0, 1).unsqueeze(2)
    return weight_VC1S.float() if itemsize == 4 else weight_VC1S


@dataclass(frozen=True, kw_only=True)
class SteeringProjection(BiasScorer):
    """How far a neuron writes along the layer's mean deviation of an attribute value. Unit: square of the residual stream."""

    def needs(self) -> Needs:
        """The statistic above, from one forward, and the weights."""
        return Needs(statistics=(Steering(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        size_N = at.sums["steering.size"][0] / at.sums["steering.seen"][0].clamp_min(1)
        away_AH = at.sums["steering.away"] / at.sums["steering.count"].clamp_min(1)
        # values first: a tenth of the time, for weights are stored (H, N)
        along_AN: Tensor = away_AH @ at.weights["out"].double().T
        return size_N * along_AN.abs().amax(0)


@dataclass(frozen=True, kw_only=True)
class VocabularySpread(BiasScorer):
    """Largest less smallest probability of a value's first tokens, output weights read out by norm and head. No unit, in [0, 1]."""

    rows: int = 128
    """Neurons that are read out at once: bounds the memory of the logits."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"The 'rows' must be at least 1. Got {self.rows} instead.")

    def needs(self) -> Needs:
        """The weights and the readout: no forward over texts."""
        return Needs(weights=True, readout=True)

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        assert at.readout is not None
        found = []
        for part_RH in torch.split(at.weights["out"], self.rows):
            p_RW = at.readout(part_RH).double().softmax(-1)
            p_AR = torch.stack([p_RW[:, list(tokens)].sum(1) for tokens in at.attribute_tokens if tokens])
            found.append(p_AR.amax(0) - p_AR.amin(0))
        return torch.cat(found)
