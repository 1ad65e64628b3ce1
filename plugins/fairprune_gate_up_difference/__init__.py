"""Bias as in the Fairness Pruning notebook: mean over tokens of |delta gate| (before its nonlinearity) plus |delta up|.

For more than two variants, the mean over all pairs of variants. Contrasts whose variants have equal token counts are compared
token by token over the whole text, as published; the others over the aligned slots. Source: the notebook of the Fairness Pruning
article (July 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, Tap, pair_gaps, pairs_of


@dataclass(frozen=True, kw_only=True)
class PairDifference(Statistic):
    """Mean over pairs and tokens of |delta gate| + |delta up|, and 1 if anything could be compared."""

    name: str = "gate-up-difference"
    taps: frozenset[Tap] = frozenset({"gate", "up"})

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `difference`: (C, 1, N), and `seen`: (C, 1, 1)."""
        present_CV, equal_C = obs.attribute >= 0, obs.equal_length
        both_CVT = obs.mask & (obs.mask | ~present_CV.unsqueeze(-1)).all(1, keepdim=True)
        columns = obs.acts["gate"].shape[-1]
        difference_CN, seen_C = obs.slot_weight.new_zeros(len(equal_C), columns), obs.slot_weight.new_zeros(len(equal_C))
        for chosen_C, acts, mask_CVS in ((equal_C, obs.acts, both_CVT), (~equal_C, obs.slots, obs.aligned_mask)):
            mine = chosen_C.nonzero().squeeze(1)
            if not len(mine):
                continue
            some = len(mine) < len(equal_C)
            shared_CS = (mask_CVS[mine] if some else mask_CVS).any(1)  # a token that one variant has, all have
            weight_CS = shared_CS / shared_CS.sum(1, keepdim=True).clamp_min(1).double()
            pair_CVV = pairs_of((mask_CVS[mine] if some else mask_CVS).any(2))
            shown = [acts[tap].index_select(0, mine) if some else acts[tap] for tap in ("gate", "up")]
            gaps = [pair_gaps(values, weight_CS, pair_CVV) for values in shown]
            difference_CN[mine], seen_C[mine] = gaps[0] + gaps[1], pair_CVV.any(2).any(1).double()
        return {"difference": difference_CN.unsqueeze(1), "seen": seen_C[:, None, None]}


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
