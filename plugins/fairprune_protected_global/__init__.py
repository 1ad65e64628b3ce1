"""Protect the most important neurons, then take the most biased of all layers.

The top `protect` share of all neurons by importance is never touched; of the others the highest bias goes first, over all layers
together. Neurons with a bias of 0 or below are not chosen. Source: the two-stage rule of FASP (Zayed et al., AAAI 2024), for neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import Budget, Choice, PolicyContext, Scores, SelectionPolicy


@dataclass(frozen=True, kw_only=True)
class ProtectedGlobal(SelectionPolicy):
    """The highest bias over all layers, outside a protected share by importance."""

    protect: float = 0.1
    """Share of all neurons, by importance, that is never touched."""

    def __post_init__(self) -> None:
        if not 0 <= self.protect < 1:
            raise ValueError(f"The 'protect' must be in [0, 1). Got {self.protect} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        names = sorted(name for name, site in scores.sites.items() if site.layer not in budget.protected_layers)
        if not names:
            return Choice(units={}, reason="all layers are protected")
        sizes = [scores.sites[name].units for name in names]
        bias = torch.cat([scores.bias[name] for name in names])
        importance = torch.cat([scores.importance[name] for name in names])
        allowed = torch.cat([scores.observed[name] for name in names]) & (bias > 0)
        shielded = torch.sort(importance, descending=True, stable=True).indices[: int(self.protect * len(importance))]
        allowed[shielded] = False
        site_of = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes))
        first = torch.tensor([0, *sizes]).cumsum(0)
        layers = torch.tensor([scores.sites[name].layer for name in names])
        room = {int(layer): self._room(budget, scores, int(layer)) for layer in layers.unique()}
        spare = [size - 1 for size in sizes]
        chosen: list[list[int]] = [[] for _ in names]
        left = budget.units(scores.sites)
        for index in torch.sort(bias.masked_fill(~allowed, -torch.inf), descending=True, stable=True).indices.tolist():
            if left == 0 or not bool(allowed[index]):
                break
            site, layer = int(site_of[index]), int(layers[site_of[index]])
            if room[layer] > 0 and spare[site] > 0:
                chosen[site].append(index - int(first[site]))
                left, room[layer], spare[site] = left - 1, room[layer] - 1, spare[site] - 1
        units = {name: torch.tensor(found) for name, found in zip(names, chosen, strict=True) if found}
        order: dict[str, Tensor] = {name: scores.bias[name][found] for name, found in units.items()}
        reason = None if units else f"the budget {budget} and the protected share leave no neuron with a bias above 0"
        return Choice(units=units, order=order, reason=reason)

    def _room(self, budget: Budget, scores: Scores, layer: int) -> int:
        size = sum(site.units for site in scores.sites.values() if site.layer == layer)
        most = int(budget.max_layer_share * size + 1e-9)
        return min(most, int(budget.amount)) if budget.unit == "per-layer" else most
