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

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, Tap


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
        difference_CN, seen_C1 = obs.slot_weight.new_zeros(len(equal_C), columns), obs.slot_weight.new_zeros(len(equal_C), 1)
        for chosen_C, acts, mask in ((equal_C, obs.acts, both_CVT), (~equal_C, obs.aligned, obs.aligned_mask)):
            mine = chosen_C.nonzero().squeeze(1)
            if len(mine):
                difference_CN[mine], seen_C1[mine] = self._mean(acts, mask, mine)
        return {"difference": difference_CN.unsqueeze(1), "seen": seen_C1.unsqueeze(1)}

    def _mean(self, acts: Mapping[Tap, Tensor], mask_CVS: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        """Of some contrasts (C,): (C, N) float64, mean over pairs of variants and tokens; (C, 1), 1 where there was anything to compare."""
        wide = torch.promote_types(acts["gate"].dtype, torch.float32)
        some = len(mine) < len(mask_CVS)
        mask_CVS = mask_CVS[mine] if some else mask_CVS
        values = [(acts[tap][mine] if some else acts[tap]).to(wide) for tap in ("gate", "up")]
        total_CN = values[0].new_zeros(values[0].shape[0], values[0].shape[-1], dtype=torch.float64)
        pairs_C1 = total_CN.new_zeros(len(total_CN), 1)
        for first, second in combinations(range(mask_CVS.shape[1]), 2):
            both_CS = mask_CVS[:, first] & mask_CVS[:, second]
            tokens_C1 = both_CS.sum(1, keepdim=True)
            weight_C1S = (both_CS / tokens_C1.clamp_min(1)).to(wide).unsqueeze(1)
            for value in values:
                delta_CSN = (value[:, first] - value[:, second]).abs_()
                total_CN = total_CN + torch.bmm(weight_C1S, delta_CSN).squeeze(1).double()
            pairs_C1 = pairs_C1 + (tokens_C1 > 0).double()
        return total_CN / pairs_C1.clamp_min(1), (pairs_C1 > 0).double()


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
