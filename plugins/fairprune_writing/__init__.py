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

    def prepare(self, at: SiteContext) -> tuple[dict[int, int], Tensor]:
        """Token -> its place, and the probability `(N, T)` float64 of every first token of any category: one readout for all."""
        assert at.readout is not None
        tokens = sorted({token for first in at.attribute_tokens for token in first})
        parts = torch.split(at.weights["out"], self.rows)
        p_NT = torch.cat([at.readout(part_RH).double().softmax(-1)[:, tokens] for part_RH in parts])
        return {token: place for place, token in enumerate(tokens)}, p_NT

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        places, p_NT = self.prepare(at) if at.prepared is None else at.prepared
        values = [[places[token] for token in first] for first in at.attribute_tokens if first]
        p_AN = torch.stack([p_NT[:, value].sum(1) for value in values])
        return p_AN.amax(0) - p_AN.amin(0)
