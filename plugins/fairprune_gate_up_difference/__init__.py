"""Bias as in the Fairness Pruning notebook: mean over tokens of |delta gate| (before its nonlinearity) plus |delta up|.

For more than two variants, the mean over all pairs of variants. Contrasts whose variants have equal token counts are compared
token by token over the whole text, as published; the others over the aligned slots. Source: the notebook of the Fairness Pruning
article (July 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic


@dataclass(frozen=True, kw_only=True)
class PairDifference(Statistic):
    """Two rows a contrast: mean over pairs and tokens of |delta gate| + |delta up|, and 1 if anything could be compared."""

    name: str = "gate-up-difference"
    taps: frozenset = frozenset({"gate", "up"})  # type: ignore[type-arg]

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `difference`: (C, 2, N)."""
        present_CV = obs.attribute >= 0
        both_CVT = obs.mask & (obs.mask | ~present_CV.unsqueeze(-1)).all(1, keepdim=True)
        token_CN, token_seen_C = self._mean(obs.acts, both_CVT)
        slot_CN, slot_seen_C = self._mean(obs.aligned, obs.aligned_mask)
        equal_C1 = obs.equal_length.unsqueeze(1)
        seen_C1 = torch.where(equal_C1, token_seen_C.unsqueeze(1), slot_seen_C.unsqueeze(1)).double()
        difference_CN = torch.where(equal_C1, token_CN, slot_CN)
        return {"difference": torch.stack([difference_CN, seen_C1.expand_as(difference_CN)], 1)}

    def _mean(self, acts: Mapping, mask_CVS: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[type-arg]
        total_CN, pairs_C1 = 0.0, 0.0
        values = {tap: acts[tap].double() for tap in ("gate", "up")}
        for first, second in combinations(range(mask_CVS.shape[1]), 2):
            both_CS1 = (mask_CVS[:, first] & mask_CVS[:, second]).unsqueeze(-1)
            tokens_C1 = both_CS1.sum(1)
            for value in values.values():
                total_CN = total_CN + ((value[:, first] - value[:, second]).abs() * both_CS1).sum(1) / tokens_C1.clamp_min(1)
            pairs_C1 = pairs_C1 + (tokens_C1 > 0).double()
        assert isinstance(total_CN, Tensor)
        assert isinstance(pairs_C1, Tensor)
        return total_CN / pairs_C1.clamp_min(1), pairs_C1.squeeze(1) > 0


@dataclass(frozen=True, kw_only=True)
class GateUpDifference(BiasScorer):
    """Mean over contrasts of the statistic above. Unit: activation before the nonlinearity."""

    def needs(self) -> Needs:
        """Gate and up taps, from one forward."""
        return Needs(statistics=(PairDifference(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        difference_N, seen_N = at.sums["gate-up-difference.difference"]
        return difference_N / seen_N.clamp_min(1)
