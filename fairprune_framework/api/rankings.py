"""What selection policies share: who may be chosen, a ranking over all layers within the budget's limits, and matched draws.

Pure functions over scores; policies import them from `fairprune_framework.api`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from fairprune_framework.api.types import Budget, Choice, Scores


def eligible(scores: Scores, budget: Budget, protect: float = 0.0) -> dict[str, Tensor]:
    """site -> (N,) bool: observed, outside protected layers, and not of the top `protect` share by importance of those layers.

    Sites of protected layers are left out; the others come sorted by name. Ties go by site and index.
    """
    names = sorted(name for name, site in scores.sites.items() if site.layer not in budget.protected_layers)
    if not names:
        return {}
    importance = torch.cat([scores.importance[name] for name in names])
    allowed = torch.cat([scores.observed[name] for name in names])
    shielded = torch.sort(importance, descending=True, stable=True).indices[: int(protect * len(importance))]
    allowed[shielded] = False
    return dict(zip(names, torch.split(allowed, [scores.sites[name].units for name in names]), strict=True))


def top_share(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """site -> (N,) bool: the highest `share` of all values over the sites, at least one; ties go by site and index."""
    names = sorted(values)
    joined = torch.cat([values[name] for name in names])
    chosen = torch.zeros(len(joined), dtype=torch.bool)
    chosen[torch.sort(joined, descending=True, stable=True).indices[: max(1, int(share * len(joined)))]] = True
    return dict(zip(names, torch.split(chosen, [len(values[name]) for name in names]), strict=True))


def biased(scores: Scores, allowed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """site -> (N,) bool: of those that are allowed, the units with a bias above 0."""
    return {name: may & (scores.bias[name] > 0) for name, may in allowed.items()}


def apportion(weights: Mapping[int, float], count: int, most: Mapping[int, int]) -> dict[int, int]:
    """Whole numbers proportional to weights that add up to `count`, none above its `most`; less in all where there is no more room.

    Largest remainders; what a layer has no room for goes to the others. Ties go to the lower layer.

    >>> apportion({0: 3.0, 1: 1.0}, 10, {0: 5, 1: 9})
    {0: 5, 1: 5}

    Args:
        weights: layer -> a weight, at least 0.
        most: layer -> the most that it may give.
    """
    found = dict.fromkeys(weights, 0)
    open_ = {layer for layer, weight in weights.items() if weight > 0 and most[layer] > 0}
    while open_ and (left := count - sum(found.values())) > 0:
        total = sum(weights[layer] for layer in open_)
        exact = {layer: left * weights[layer] / total for layer in sorted(open_)}
        given = {layer: int(share) for layer, share in exact.items()}
        for layer in sorted(exact, key=lambda layer: (given[layer] - exact[layer], layer))[: left - sum(given.values())]:
            given[layer] += 1
        for layer, more in given.items():
            found[layer] = min(most[layer], found[layer] + more)
        open_ = {layer for layer in open_ if found[layer] < most[layer]}
    return found


def ranking(
    scores: Scores,
    budget: Budget,
    priority: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    most: Mapping[int, int] | None = None,
) -> Iterator[tuple[str, int]]:
    """(site, unit) by falling priority over all sites, within each layer's room and with one unit of each site left over.

    The budget's amount in all is not looked at: take as many as `budget.units` says. Ties go by site and index.

    Args:
        most: layer -> how many it may give, beside the budget's own limits; a layer that is not named gives none.
    """
    names = sorted(allowed)
    if not names:
        return
    sizes = [scores.sites[name].units for name in names]
    may = torch.cat([allowed[name] for name in names])
    joined = torch.cat([priority[name].double() for name in names]).masked_fill(~may, -torch.inf)
    room = budget.room(scores.sites)
    if most is not None:
        room = {layer: min(left, most.get(layer, 0)) for layer, left in room.items()}
    spare = {name: size - 1 for name, size in zip(names, sizes, strict=True)}
    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes)).tolist()
    first = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for index in torch.sort(joined, descending=True, stable=True).indices[: int(may.sum())].tolist():
        name = names[owner[index]]
        layer = scores.sites[name].layer
        if room[layer] > 0 and spare[name] > 0:
            room[layer], spare[name] = room[layer] - 1, spare[name] - 1
            yield name, index - first[owner[index]]


def select_top(
    scores: Scores,
    budget: Budget,
    priority: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    reason: str | None = None,
    most: Mapping[int, int] | None = None,
) -> Choice:
    """The first of the ranking, as many as the budget allows; `reason` is given where there is none, `most` is as of `ranking`."""
    return to_choice(islice(ranking(scores, budget, priority, allowed, most), budget.units(scores.sites)), priority, reason)


def to_choice(
    ranked: Iterator[tuple[str, int]] | list[tuple[str, int]], priority: Mapping[str, Tensor], reason: str | None = None
) -> Choice:
    """A choice from (site, unit), most removable first; `reason` is given where there is none."""
    units: dict[str, list[int]] = {}
    for name, unit in ranked:
        units.setdefault(name, []).append(unit)
    chosen = {name: torch.tensor(indices) for name, indices in sorted(units.items())}
    order: dict[str, Tensor] = {name: priority[name].double()[indices] for name, indices in chosen.items()}
    return Choice(units=chosen, order=order, reason=None if chosen else reason)


def draw_matched(
    reference: Mapping[str, Tensor],
    size: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    generator: torch.Generator,
    neighbours: int = 8,
    *,
    apart: bool = True,
) -> dict[str, Tensor]:
    """For each unit of a reference another one of the same site and of nearly the same size, drawn among the nearest.

    Args:
        reference: site -> (n,) int64.
        size: site -> (N,) float, positive: what must be equal, such as the activation's norm. Compared as a ratio.
        allowed: site -> (N,) bool: who may be drawn.
        neighbours: how many of the nearest are drawn from.
        apart: draw none of the reference; without it they may be drawn, but not in their own place.

    Returns: site -> (n,) int64, in the order of the reference; shorter where a site has too few left.
    """
    drawn: dict[str, Tensor] = {}
    for name in sorted(reference):
        free = allowed[name].clone()
        if apart:
            free[reference[name]] = False
        logs = size[name].double().clamp_min(1e-30).log()
        picked: list[int] = []
        for unit in reference[name].tolist():
            away = (logs - logs[unit]).abs().masked_fill(~free, torch.inf)
            away[unit] = torch.inf
            near = torch.sort(away, stable=True).indices[: min(neighbours, int(away.isfinite().sum()))]
            if not len(near):
                break
            pick = int(near[int(torch.randint(len(near), (), generator=generator))])
            free[pick] = False
            picked.append(pick)
        drawn[name] = torch.tensor(picked, dtype=torch.long)
    return drawn
