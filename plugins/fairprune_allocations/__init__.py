"""How many neurons each layer gives: policies that differ in what makes layers comparable.

global                the highest bias over all layers
standardised-global   the highest (bias - mean) / standard deviation of its site: FLAP (An et al. 2024)
two-stage             the top share by importance of each site stays, then the highest bias: FASP (Zayed et al., AAAI 2024)
bias-proportional     each layer gives in proportion to its sum of positive bias
outlier-weighted      a layer with more outliers among |W| x |X|_2 gives less: OWL (Yin et al. 2024)

docs/method/allocations.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import (
    Budget,
    Choice,
    Needs,
    Observation,
    Pass,
    PolicyContext,
    Scores,
    SelectionPolicy,
    SiteContext,
    Statistic,
    Tap,
    apportion,
    biased,
    eligible,
    select_top,
    top_share,
)

NONE = "the budget and what is protected leave no neuron with a bias above 0"


@dataclass(frozen=True, kw_only=True)
class Global(SelectionPolicy):
    """The highest bias over all layers."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        return select_top(scores, budget, scores.bias, biased(scores, eligible(scores, budget)), NONE)


@dataclass(frozen=True, kw_only=True)
class StandardisedGlobal(SelectionPolicy):
    """The highest bias over all layers, in standard deviations of its site."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        priority = {name: (bias - bias.mean()) / bias.std().clamp_min(1e-300) for name, bias in scores.bias.items()}
        return select_top(scores, budget, priority, biased(scores, eligible(scores, budget)), NONE)


@dataclass(frozen=True, kw_only=True)
class TwoStage(SelectionPolicy):
    """The highest bias over all layers, outside the top share by importance of each site."""

    gamma: float = 0.3
    """Share of each site, by importance, that is never touched; at least one neuron."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"The 'gamma' must be in (0, 1). Got {self.gamma} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = {
            name: may & ~top_share({name: scores.importance[name]}, self.gamma)[name]
            for name, may in eligible(scores, budget).items()
        }
        return select_top(scores, budget, scores.bias, biased(scores, allowed), NONE)


def _by_layer(scores: Scores, values: Mapping[str, float]) -> dict[int, float]:
    """layer -> the sum over its sites."""
    found: dict[int, float] = {}
    for name in sorted(values):
        layer = scores.sites[name].layer
        found[layer] = found.get(layer, 0.0) + values[name]
    return found


@dataclass(frozen=True, kw_only=True)
class BiasProportional(SelectionPolicy):
    """Of each layer the highest bias, as many as the layer has of all bias above 0."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = biased(scores, eligible(scores, budget))
        weights = _by_layer(scores, {name: float(scores.bias[name][may].sum()) for name, may in allowed.items()})
        most = apportion(weights, budget.units(scores.sites), _room(scores, budget, allowed))
        return select_top(scores, budget, scores.bias, allowed, NONE, most)


def _room(scores: Scores, budget: Budget, allowed: Mapping[str, Tensor]) -> dict[int, int]:
    """layer -> the most that it can give: the budget's room, and who is allowed."""
    free = _by_layer(scores, {name: float(min(int(may.sum()), scores.sites[name].units - 1)) for name, may in allowed.items()})
    return {layer: min(int(free.get(layer, 0)), most) for layer, most in budget.room(scores.sites).items()}


@dataclass(frozen=True, kw_only=True)
class InputSquares(Statistic):
    """Per document of calibration text the sum over tokens of squares, of what enters the block and of its neurons."""

    name: str = "input-squares"
    taps: frozenset[Tap] = frozenset({"mlp_input", "neuron"})

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Outputs `mlp_input`: (C, 1, H), and `neuron`: (C, 1, N)."""
        outside_CT1 = ~obs.mask[:, 0].unsqueeze(-1)
        return {
            tap: obs.acts[tap][:, 0].double().masked_fill(outside_CT1, 0).square().sum(1, keepdim=True)
            for tap in sorted(self.taps)
            if tap in obs.acts
        }


@dataclass(frozen=True, kw_only=True)
class OutlierWeighted(SelectionPolicy):
    """Of each layer the highest bias, less of layers with more outliers among weight x input norm."""

    m: float = 5.0
    """An outlier is above this many times the mean of its site."""
    spread: float = 0.5
    """How far a layer's share may be from an equal one, as a part of it."""

    def __post_init__(self) -> None:
        if self.m <= 0:
            raise ValueError(f"The 'm' must be above 0. Got {self.m} instead.")
        if not 0 <= self.spread < 1:
            raise ValueError(f"The 'spread' must be in [0, 1). Got {self.spread} instead.")

    def needs(self) -> Needs:
        """One forward over the scoring half of the calibration text, and the weights."""
        return Needs(statistics=(InputSquares(),), weights=True)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = biased(scores, eligible(scores, budget))
        if not allowed:
            return Choice(units={}, reason=NONE)
        sites = _by_layer(scores, dict.fromkeys(allowed, 1.0))
        share = _by_layer(scores, {name: self._outliers(context.at(name)) for name in allowed})
        rate = {layer: share[layer] / sites[layer] for layer in share}
        low, span = min(rate.values()), (max(rate.values()) - min(rate.values())) or 1.0
        size = _by_layer(scores, {name: float(scores.sites[name].units) for name in allowed})
        weights = {layer: size[layer] * (1 + self.spread - 2 * self.spread * (r - low) / span) for layer, r in rate.items()}
        most = apportion(weights, budget.units(scores.sites), _room(scores, budget, allowed))
        return select_top(scores, budget, scores.bias, allowed, NONE, most)

    def _outliers(self, at: SiteContext) -> float:
        """Share of the site's |weight| x |input|_2 that is above `m` times their mean."""
        norm_1N = at.sums["input-squares.neuron"].sqrt()
        every = [(at.weights["out"].double().abs() * norm_1N.T).flatten()]
        if "input-squares.mlp_input" in at.sums:
            norm_1H = at.sums["input-squares.mlp_input"].sqrt()
            every += [(at.weights[r].double().abs() * norm_1H).flatten() for r in ("gate", "up") if r in at.weights]
        joined = torch.cat(every)
        return float((joined > self.m * joined.mean()).double().mean())
