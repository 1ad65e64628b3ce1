"""Statistics that several plugins share: equal by value, so that one audit computes each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

from fairprune_framework.api.interfaces import Observation, Pass, SiteContext, Statistic, StreamSums, ValueSums

if TYPE_CHECKING:
    from torch import Tensor

    from fairprune_framework.api.types import Site, Tap


TINY = 1e-36
"""Differences above it are their own smooth absolute value: |a - b| in one pass over memory, where `sub` and `abs` take two."""


def zero_outside(obs: Observation, values_XK: Tensor, mask_X: Tensor) -> Tensor:
    """Values (..., K) with 0 where a mask (...) is False: on a CPU the values themselves where that is so already, not to be changed."""
    if values_XK.device.type == "cpu":  # elsewhere, looking at a value waits for all work
        outside_P = obs.once(_outside, mask_X)
        if not outside_P.shape[0] or not bool(values_XK.reshape(-1, values_XK.shape[-1]).index_select(0, outside_P).any()):
            return values_XK
    return values_XK.masked_fill(~mask_X.unsqueeze(-1), 0)


def _outside(mask_X: Tensor) -> Tensor:
    return (~mask_X).flatten().nonzero().squeeze(1)


def shared_slots(obs: Observation, tap: Tap = "neuron") -> Tensor:
    """`obs.aligned`, (C, V, S, K) float64, with 0 where `aligned_mask` is False. Made once for all statistics: not to be changed."""
    return obs.once(_shared_slots, obs.aligned[tap], obs.aligned_mask)


def _shared_slots(aligned_CVSK: Tensor, mask_CVS: Tensor) -> Tensor:
    return aligned_CVSK.double().masked_fill(~mask_CVS.unsqueeze(-1), 0)


def slot_means(obs: Observation, tap: Tap = "neuron") -> Tensor:
    """Mean over the shared slots of each variant, (C, V, K) float64; 0 for an absent variant, or a contrast without a shared slot. Made
    once for all statistics: not to be changed."""
    return obs.once(_slot_means, obs.slots[tap], obs.once(slot_share, obs.slot_weight))


def _slot_means(slots_CVSK: Tensor, share_C11: Tensor) -> Tensor:
    import torch

    return slots_CVSK.sum(2, dtype=torch.float64).mul_(share_C11)


def slot_share(weight_CS: Tensor) -> Tensor:
    """(C, 1, 1) float64: what `slot_weight` is in every shared slot of a contrast; 0 without one. For `Observation.once`."""
    return weight_CS.amax(1)[:, None, None]


def variants_seen(mask_CVS: Tensor) -> Tensor:
    """(C, V, 1) bool: a variant has a slot of an `aligned_mask`. To be called through `Observation.once`."""
    return mask_CVS.any(2).unsqueeze(-1)


def value_of_variants(obs: Observation) -> Tensor:
    """Which attribute value each variant has, (C, V, A) float64, one 1 in a row; zeros for a variant without a shared slot. Made once
    for all statistics: not to be changed."""
    return obs.once(_value_of_variants, obs.attribute, obs.aligned_mask, obs.values)


def _value_of_variants(attribute_CV: Tensor, mask_CVS: Tensor, values: int) -> Tensor:
    import torch

    values_A = torch.arange(values, device=attribute_CV.device)
    return ((attribute_CV.unsqueeze(-1) == values_A) & mask_CVS.any(2).unsqueeze(-1)).double()


def value_counts(obs: Observation) -> Tensor:
    """How many variants with a shared slot have each value, (C, A, 1) float64. Made once for all statistics: not to be changed."""
    return obs.once(_value_counts, value_of_variants(obs))


def _value_counts(value_CVA: Tensor) -> Tensor:
    return value_CVA.sum(1).unsqueeze(-1)


def mean_variance(obs: Observation, tap: Tap = "neuron") -> Tensor:
    """Mean over the shared slots of `obs.aligned_variance`, (C, 1, K) float64; 0 for a contrast without a shared slot. Made once for all
    statistics: not to be changed."""
    return obs.once(_mean_variance, obs.aligned_variance[tap], obs.slot_weight)


def _mean_variance(variance_CSK: Tensor, weight_CS: Tensor) -> Tensor:
    return (weight_CS.unsqueeze(1).to(variance_CSK.dtype) @ variance_CSK).double()


def deviations(obs: Observation, tap: Tap = "neuron") -> Tensor:
    """`slot_means` less their mean over the variants of a contrast, (C, V, K) float64; 0 where there is none. Made once for all
    statistics: not to be changed."""
    return obs.once(_deviations, slot_means(obs, tap), obs.once(variants_seen, obs.aligned_mask))


def _deviations(means_CVK: Tensor, seen_CV1: Tensor) -> Tensor:
    mean_C1K = means_CVK.sum(1, keepdim=True).div_(seen_CV1.sum(1, keepdim=True).clamp_min(1))
    return (means_CVK - mean_C1K).mul_(seen_CV1)


def value_sums(obs: Observation, of_variants_CVK: Tensor) -> ValueSums:
    """For each attribute value the sum over the variants that have it, to be returned as summands; float64, 0 for a variant without a
    shared slot."""
    return ValueSums(of_variants_CVK, value_of_variants(obs))


def pair_gaps(obs: Observation, values_CVSK: Tensor, weight_CS: Tensor, pair_CVV: Tensor) -> Tensor:
    """Mean over pairs of variants of the weighted sum over slots of |difference|: (C, K) float64, 0 where no pair counts.

    Products are in the dtype of the values, at least float32: none has a negative term, so that none cancels.

    Args:
        weight_CS: weight of each slot; 0 where not all variants have it.
        pair_CVV: float64, 1 for each pair that counts, once, above the diagonal.
    """
    import torch

    values_CVSK = values_CVSK.to(torch.promote_types(values_CVSK.dtype, torch.float32))
    weights = obs.once(_pair_weights, weight_CS, pair_CVV, values_CVSK.dtype.itemsize)
    count, variants, slots, columns = values_CVSK.shape
    gap_CSK = obs.room("gap", (count, slots, columns), values_CVSK.dtype)  # none of all pairs: slots are many
    total_C1K = values_CVSK.new_zeros(count, 1, columns)
    for (one, two), weight_C1S in zip(combinations(range(variants), 2), weights, strict=True):
        torch.ops.aten.smooth_l1_loss.out(values_CVSK[:, one], values_CVSK[:, two], 0, TINY, out=gap_CSK)
        total_C1K.baddbmm_(weight_C1S, gap_CSK)
    return total_C1K.squeeze(1).double()


def _pair_weights(weight_CS: Tensor, pair_CVV: Tensor, itemsize: int) -> tuple[Tensor, ...]:
    """(C, 1, S) for each pair of variants, in float32 or float64: weights of its slots in the mean over all pairs."""
    mean_CVV = pair_CVV / pair_CVV.sum((1, 2), keepdim=True).clamp_min(1)
    pairs = combinations(range(pair_CVV.shape[1]), 2)
    weights = [(weight_CS * mean_CVV[:, one, two].unsqueeze(1)).unsqueeze(1) for one, two in pairs]
    return tuple(weight.float() if itemsize == 4 else weight for weight in weights)


def pairs_of(seen_CV: Tensor) -> Tensor:
    """(C, V, V) float64: 1 for each pair of variants that both were seen, once, above the diagonal."""
    return (seen_CV.unsqueeze(1) & seen_CV.unsqueeze(2)).triu(1).double()


def pairs_shared(mask_CVS: Tensor) -> Tensor:
    """`pairs_of` the variants that have a place of a mask. To be called through `Observation.once`."""
    return pairs_of(mask_CVS.any(2))


def any_pair(pair_CVV: Tensor) -> Tensor:
    """(C, 1, 1) float64: 1 for a contrast with a pair that counts. To be called through `Observation.once`."""
    return pair_CVV.any(2).any(1).double()[:, None, None]


def unit_sums(values: Tensor, site: Site) -> Tensor:
    """Sum over the columns of each unit, (..., K) -> (..., N): what is additive, such as a slope, of the whole unit."""
    return values if site.unit_width == 1 else values.reshape(*values.shape[:-1], -1, site.unit_width).sum(-1)


@dataclass(frozen=True, kw_only=True)
class ValueDeviation(Statistic):
    """For each attribute value the sum of its deviations from the mean of its contrast, and in how many contrasts."""

    name: str = "value-deviation"

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """See `Statistic.summands`. Outputs `sum`: (C, A, N), and `count`: (C, A, 1)."""
        return {"sum": value_sums(obs, deviations(obs)), "count": value_counts(obs)}


@dataclass(frozen=True, kw_only=True)
class SquareSum(Statistic):
    """Per document of calibration text, the sum over its tokens of the squared activation; its root is the activation's 2-norm."""

    name: str = "square-sum"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `squares`: (C, 1, N)."""
        acts = obs.acts["neuron"].double() * obs.mask.unsqueeze(-1)
        return {"squares": acts.square().sum((1, 2)).unsqueeze(1)}


@dataclass(frozen=True, kw_only=True)
class SparedSlopes(Statistic):
    """Three rows a document or contrast: the sum over its tokens, and the columns of a unit, of activation x gradient of an objective;
    its square; and 1. So the mean slope of a unit is known with its standard error."""

    wanted: ClassVar[Literal["high", "low"]]
    """Where the objective should lie: a unit supports it that pulls it there."""

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `moments`: (C, 3, N)."""
        import torch

        slope_CN = unit_sums(obs.product_sums(), obs.site)
        return {"moments": torch.stack([slope_CN, slope_CN.square(), torch.ones_like(slope_CN)], 1)}

    def supports(self, at: SiteContext | StreamSums, errors: float) -> Tensor:
        """(N,) bool: without the unit the objective would lie worse, to first order, its mean slope more than so many standard errors
        from 0."""
        mean_N, error_N = self._mean_and_error(at)
        return mean_N.gt(errors * error_N) if self.wanted == "high" else mean_N.lt(-errors * error_N)

    def opposes(self, at: SiteContext | StreamSums, errors: float) -> Tensor:
        """(N,) bool: with more of the unit the objective would lie worse, as `supports` with the other sign."""
        mean_N, error_N = self._mean_and_error(at)
        return mean_N.lt(-errors * error_N) if self.wanted == "high" else mean_N.gt(errors * error_N)

    def _mean_and_error(self, at: SiteContext | StreamSums) -> tuple[Tensor, Tensor]:
        total_N, squares_N, count_N = at.sums[f"{self.name}.moments"]
        count_N = count_N.clamp_min(2)
        mean_N: Tensor = total_N / count_N
        error_N: Tensor = ((squares_N / count_N - mean_N.square()).clamp_min(0) / (count_N - 1)).sqrt()
        return mean_N, error_N


@dataclass(frozen=True, kw_only=True)
class RecallSlopes(SparedSlopes):
    """Of `RecallLoss`, nats: below 0 where a unit helps."""

    wanted: ClassVar[Literal["high", "low"]] = "low"
    name: str = "recall-slopes"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of the calibration text."""
        from fairprune_framework.api.objectives import RecallLoss

        return (Pass(stream="calibration", objective=RecallLoss(), logits="all"),)


@dataclass(frozen=True, kw_only=True)
class LegitimateSlopes(SparedSlopes):
    """Of the margin of right words of legitimate contrasts, nats: above 0 where a unit helps."""

    wanted: ClassVar[Literal["high", "low"]] = "high"
    name: str = "legitimate-slopes"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of every legitimate contrast of `select`."""
        from fairprune_framework.api.objectives import LegitimateMargin

        return (Pass(stream="legitimate", objective=LegitimateMargin()),)


@dataclass(frozen=True, kw_only=True)
class ControlSlopes(Statistic):
    """Activation x gradient of the divergence of control contrasts, added up over variants, tokens and the columns of a unit; nats."""

    name: str = "control-slopes"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward and backward of every control contrast of `select`."""
        from fairprune_framework.api.objectives import NextTokenDivergence

        return (Pass(stream="controls", objective=NextTokenDivergence()),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `product`: (C, 1, N)."""
        return {"product": unit_sums(obs.product_sums(), obs.site).unsqueeze(1)}
