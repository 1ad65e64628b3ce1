"""The same share from every layer, by weighted bias and expendability.

priority = w * norm(bias) + (1 - w) * (1 - norm(importance)), normalised within each layer; the highest go. Source: the Fairness
Pruning article (w = 0.5 in its notebook, 0.8 in optipfair), min-max as published; `rank` is this project's, robust to the massive
activations that stretch a min-max scale. Where a layer has several sites (experts), its share is the same for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairprune_framework.api import Budget, Choice, PolicyContext, Scores, SelectionPolicy, Site


def normalised(values_N: Tensor, how: str) -> Tensor:
    """Scale to [0, 1]: by minimum and maximum, or by rank with ties sharing the mean rank. Constant values give 0."""
    if how == "minmax":
        span = values_N.max() - values_N.min()
        return (values_N - values_N.min()) / span if span > 0 else torch.zeros_like(values_N)
    _, inverse, counts = torch.unique(values_N, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return torch.zeros_like(values_N)
    last = counts.cumsum(0).double()
    mean_rank: Tensor = last - (counts.double() + 1) / 2
    return mean_rank[inverse] / (len(values_N) - 1)


@dataclass(frozen=True, kw_only=True)
class Uniform(SelectionPolicy):
    """Take the same number of neurons from every layer; a share that rounds to 0 takes none, and says so."""

    weight: float = 0.8
    """w: 1 looks at bias alone, 0 at importance alone."""
    normalisation: Literal["minmax", "rank"] = "minmax"
    """How scores are scaled within a layer."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"The 'weight' must be in [0, 1]. Got {self.weight} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        layers: dict[int, list[str]] = {}
        for name, site in scores.sites.items():
            if site.layer not in budget.protected_layers:
                layers.setdefault(site.layer, []).append(name)
        units: dict[str, Tensor] = {}
        order: dict[str, Tensor] = {}
        room = budget.room(scores.sites)
        for layer, names in layers.items():
            count = self._count(budget, {name: scores.sites[name] for name in names}, room[layer], len(layers))
            if count == 0:
                continue
            bias_N = normalised(torch.cat([scores.bias[name] for name in names]), self.normalisation)
            importance_N = normalised(torch.cat([scores.importance[name] for name in names]), self.normalisation)
            priority_N = self.weight * bias_N + (1 - self.weight) * (1 - importance_N)
            for name, priority in zip(names, torch.split(priority_N, [scores.sites[n].units for n in names]), strict=True):
                allowed = scores.observed[name] & (scores.bias[name] > 0 if scores.signed else True)
                priority = priority.masked_fill(~allowed, -torch.inf)
                ranked = torch.sort(priority, descending=True, stable=True)
                take = min(count, int(allowed.sum()), scores.sites[name].units - 1)
                units[name], order[name] = ranked.indices[:take], ranked.values[:take]
        reason = None
        if not units:
            reason = f"the budget {budget} comes to less than one neuron of a layer's site: none was chosen"
        return Choice(units=units, order=order, reason=reason)

    def _count(self, budget: Budget, sites: Mapping[str, Site], room: int, layers: int) -> int:
        """Units of each site of a layer that has room for `room`."""
        count = room // len(sites)
        if budget.unit == "fraction":
            return min(count, *(budget.units({name: site}) for name, site in sites.items()))
        return count if budget.unit == "per-layer" else min(count, int(budget.amount) // layers // len(sites))
