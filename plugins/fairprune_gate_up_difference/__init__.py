"""Bias as in the Fairness Pruning notebook: mean over tokens of |delta gate| (before its nonlinearity) plus |delta up|.

For more than two variants, the mean over all pairs of variants. Contrasts whose variants have equal token counts are compared
token by token over the whole text, as published; the others over the aligned slots. Source: the notebook of the Fairness Pruning
article (July 2025).
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
    any_pair,
    pair_gaps,
    pairs_shared,
)


@dataclass(frozen=True, kw_only=True)
class PairDifference(Statistic):
    """Mean over pairs and tokens of |delta gate| + |delta up|, and 1 if anything could be compared."""

    name: str = "gate-up-difference"
    taps: frozenset[Tap] = frozenset({"gate", "up"})

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `difference`: (C, 1, N), and `seen`: (C, 1, 1)."""
        both_CVT = obs.once(_in_all, obs.mask, obs.attribute)
        difference_CN = obs.slot_weight.new_zeros(len(obs.mask), obs.acts["gate"].shape[-1])
        for equal, acts, mask_CVS in ((1, obs.acts, both_CVT), (0, obs.slots, obs.aligned_mask)):
            mine, weight_CS, pair_CVV = obs.once(_compared, obs.equal_length, mask_CVS, equal)
            if not len(mine):
                continue
            for tap in ("gate", "up"):
                values_CVSN = acts[tap]
                if len(mine) < len(difference_CN):
                    room = obs.room("some", (len(mine), *values_CVSN.shape[1:]), values_CVSN.dtype)
                    values_CVSN = torch.index_select(values_CVSN, 0, mine, out=room)
                difference_CN[mine] += pair_gaps(obs, values_CVSN, weight_CS, pair_CVV)
        return {"difference": difference_CN.unsqueeze(1), "seen": obs.once(_seen, obs.equal_length, both_CVT, obs.aligned_mask)}


def _in_all(mask_CVT: Tensor, attribute_CV: Tensor) -> Tensor:
    """(C, V, T) bool: tokens at places that all present variants have."""
    return mask_CVT & (mask_CVT | (attribute_CV < 0).unsqueeze(-1)).all(1, keepdim=True)


def _compared(equal_C: Tensor, mask_CVS: Tensor, equal: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which contrasts have equal token counts, or have not; of these the weight of each place, and the pairs that count."""
    mine = (equal_C if equal else ~equal_C).nonzero().squeeze(1)
    shared_CS = mask_CVS[mine].any(1)  # a token that one variant has, all have
    return mine, shared_CS / shared_CS.sum(1, keepdim=True).clamp_min(1).double(), pairs_shared(mask_CVS[mine])


def _seen(equal_C: Tensor, both_CVT: Tensor, aligned_CVS: Tensor) -> Tensor:
    """(C, 1, 1) float64: 1 for a contrast of which anything could be compared."""
    return any_pair(pairs_shared(both_CVT)).where(equal_C[:, None, None], any_pair(pairs_shared(aligned_CVS)))


@dataclass(frozen=True, kw_only=True)
class GateUpDifference(BiasScorer):
    """Mean over contrasts of the statistic above. Unit: activation before the nonlinearity."""

    def needs(self) -> Needs:
        """Gate and up taps, from one forward."""
        return Needs(statistics=(PairDifference(),))

    def score(self, at: SiteContext) -> Tensor:
        """See `BiasScorer.score`."""
        seen_1 = at.sums["gate-up-difference.seen"][0]
        return at.sums["gate-up-difference.difference"][0] / seen_1.clamp_min(1)
