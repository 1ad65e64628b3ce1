"""Policies that weigh bias against something else, or search for a set.

pareto                 fronts of high bias and low importance, the first front first
knapsack               the most bias for a limited share of all importance: an integer programme; controls, right words and recall
                       held where asked: its relaxation
category-intersection  neurons among the most biased of every category
stable                 neurons that the budget takes in most bootstraps over templates
annealing              simulated annealing over sets, each measured

Source: Pareto fronts as of Kung et al. 1975; knapsack: Aflalo et al. 2020 for pruning; stability selection (Meinshausen and Buehlmann
2010); Attention Pruning (2025) for annealing. docs/method/search.md.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import (
    Budget,
    Choice,
    Held,
    Needs,
    PolicyContext,
    Scores,
    SelectionPolicy,
    biased,
    eligible,
    ranking,
    select_top,
    to_choice,
    top_share,
)

NONE = "the budget and what is protected leave no neuron with a bias above 0"


def _joined(scores: Scores, allowed: Mapping[str, Tensor]) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Names of the sites, and bias, importance and who is allowed over all of them, (sum of N,)."""
    names = sorted(allowed)
    every = (torch.cat([values[name] for name in names]) for values in (scores.bias, scores.importance, allowed))
    return (names, *every)  # type: ignore[return-value]


def _split(values: Tensor, names: list[str], scores: Scores) -> dict[str, Tensor]:
    return dict(zip(names, torch.split(values, [scores.sites[name].units for name in names]), strict=True))


def _members(group_N: Any) -> Any:
    """(G, N) sparse: which unit is in which group, the groups in rising order."""
    import numpy as np
    from scipy.sparse import csr_array

    _, row_N = np.unique(group_N, return_inverse=True)
    return csr_array((np.ones(len(row_N)), (row_N, np.arange(len(row_N)))))


@dataclass(frozen=True, kw_only=True)
class Pareto(SelectionPolicy):
    """Neurons that none is both more biased and less important than, then those that only such are; in a front the highest bias."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = biased(scores, eligible(scores, budget))
        if not allowed:
            return Choice(units={}, reason=NONE)
        names, bias, cost, may = _joined(scores, allowed)
        front = torch.zeros_like(bias)
        lowest: list[float] = []  # of each front, the lowest importance so far; rising
        at = sorted(may.nonzero().flatten().tolist(), key=lambda i: (-float(bias[i]), float(cost[i]), i))
        for i in at:
            rank = bisect_right(lowest, float(cost[i]))
            lowest[rank : rank + 1] = [float(cost[i])]
            front[i] = rank
        spread = float(bias.max() - bias.min()) or 1.0
        priority = -front + (bias - bias.min()) / spread / 2
        return select_top(scores, budget, _split(priority, names, scores), allowed, NONE)


@dataclass(frozen=True, kw_only=True)
class Knapsack(Held, SelectionPolicy):
    """The set of the most bias within the budget, and within a share of all importance; with constraints on what it must not touch."""

    cost: float = 0.01
    """Share of the importance of all neurons, counted from the lowest above it, that the set may have."""
    specific: bool = False
    """The divergence of controls does not fall, to first order (needs a signed bias score that is a slope, such as attribution)."""
    legitimate: bool = False
    """The margin of right words, where the attribute should matter, does not fall, to first order."""
    recall: bool = False
    """Recalled words of the calibration text become no less likely, to first order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cost <= 1:
            raise ValueError(f"The 'cost' must be in (0, 1]. Got {self.cost} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`; raises `ValueError` without contrasts of what is held, where they are required."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        allowed, count = biased(scores, eligible(scores, budget)), budget.units(scores.sites)
        allowed = dict(self.may_fall(allowed, context))
        if not count or not any(bool(may.any()) for may in allowed.values()):
            return Choice(units={}, reason=NONE)
        names, bias, importance, may = _joined(scores, allowed)
        gain, cost = bias.clamp_min(0).numpy(), (importance - importance.min().clamp_max(0)).numpy()
        unit_cost = cost / (cost.max() or 1.0)
        kept = self._kept(scores, names, context)
        whole = csr_array(np.stack([np.ones_like(gain), unit_cost, *kept]))
        room, layers = budget.room(scores.sites), [scores.sites[name].layer for name in names]
        sizes = [scores.sites[name].units for name in names]
        site_of = np.repeat(np.arange(len(names)), sizes)
        layer_of = np.repeat(layers, sizes)
        solved = milp(
            -gain / gain.max(),
            integrality=np.full_like(gain, not kept),  # dense rows: the relaxation, of which few units are fractions
            bounds=Bounds(0, may.numpy().astype(float)),
            constraints=[
                LinearConstraint(whole, ub=[count, self.cost * unit_cost.sum(), *[0.0] * len(kept)]),
                LinearConstraint(_members(layer_of), ub=[room[layer] for layer in sorted(set(layers))]),
                LinearConstraint(_members(site_of), ub=np.array(sizes) - 1),  # one unit of each site stays
            ],
        )
        if solved.x is None:
            return Choice(units={}, reason=f"the integer programme was not solved: {solved.message}")
        taken = _split(torch.from_numpy(solved.x > 0.5), names, scores)
        chosen = {name: allowed[name] & taken[name] for name in names}
        nothing = f"no neuron fits into {self.cost:.2%} of all importance"
        return select_top(scores, budget, scores.bias, chosen, nothing + (" and keeps what is held" if kept else ""))

    def _kept(self, scores: Scores, names: list[str], context: PolicyContext) -> list[Any]:
        """Rows, (sum of N,) float64 of unit mean size, of which row . x may not be above 0 for the set x: removal is a change of -1."""
        if not self.statistics():
            return []
        risen = self.control_slopes(scores, names, context)  # a set that lowers nothing of them: slope . x at most 0
        fallen = self.limits(scores, names, context)
        rows = [*risen, *({name: -values for name, values in row.items()} for row in fallen)]
        joined = [torch.cat([row[name] for name in names]).double() for row in rows]
        return [(row / row.abs().mean().clamp_min(torch.finfo(row.dtype).tiny)).numpy() for row in joined]


@dataclass(frozen=True, kw_only=True)
class CategoryIntersection(SelectionPolicy):
    """The highest mean bias among neurons of the top share by bias in every category, or in some of them."""

    share: float = 0.2
    """Of all neurons, by the bias of one category; at least one neuron."""
    least: int = 0
    """In how many categories a neuron must be among them; 0: in all."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"The 'share' must be in (0, 1]. Got {self.share} instead.")
        if self.least < 0:
            raise ValueError(f"The 'least' must not be negative. Got {self.least} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = biased(scores, eligible(scores, budget))
        votes = {name: torch.zeros(len(may), dtype=torch.long) for name, may in allowed.items()}
        bits = {name: torch.zeros(len(may), dtype=torch.long) for name, may in allowed.items()}
        for place, (_, found) in enumerate(sorted(scores.by_category.items())):
            here = {name: found[name].masked_fill(~may, -torch.inf) for name, may in allowed.items() if name in found}
            for name, top in top_share(here, self.share).items() if here else ():
                votes[name] += top
                bits[name] += top.long() << place
        wanted = self.least or len(scores.by_category)
        both = {name: may & (votes[name] >= wanted) for name, may in allowed.items()}
        nothing = f"no neuron with a bias above 0 is in the top {self.share:.1%} of {wanted} categories"
        choice = select_top(scores, budget, scores.bias, both, nothing)
        return replace(choice, categories={name: bits[name][units] for name, units in choice.units.items()})


@dataclass(frozen=True, kw_only=True)
class Stable(SelectionPolicy):
    """Neurons that the highest bias takes in most bootstraps over templates, the most frequent first."""

    frequency: float = 0.75
    """In which share of the bootstraps a neuron must be within the budget."""
    replicates: int = 20
    """Bootstraps over the clusters of the contrasts."""

    def __post_init__(self) -> None:
        if not 0 < self.frequency <= 1:
            raise ValueError(f"The 'frequency' must be in (0, 1]. Got {self.frequency} instead.")
        if self.replicates < 2:
            raise ValueError(f"The 'replicates' must be at least 2. Got {self.replicates} instead.")

    def needs(self) -> Needs:
        """Bootstrap replicates of the scores."""
        return Needs(replicates=self.replicates)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed, count = biased(scores, eligible(scores, budget)), budget.units(scores.sites)
        if not allowed:
            return Choice(units={}, reason=NONE)
        times: Counter[tuple[str, int]] = Counter()
        for drawn in context.replicates():
            times.update(islice(ranking(scores, budget, drawn.bias, allowed), count))
        often = {name: torch.zeros(len(may), dtype=torch.float64) for name, may in allowed.items()}
        for (name, unit), found in times.items():
            often[name][unit] = found / self.replicates
        kept = {name: may & (often[name] >= self.frequency) for name, may in allowed.items()}
        largest = max(max((float(bias.max()) for bias in scores.bias.values()), default=0.0), 1e-300)
        priority = {
            name: often[name] + scores.bias[name] / largest / (2 * self.replicates) for name in allowed
        }  # ties: by bias
        nothing = f"no neuron is within the budget {budget} in {self.frequency:.0%} of {self.replicates} bootstraps"
        return select_top(scores, budget, priority, kept, nothing)


@dataclass(frozen=True, kw_only=True)
class Annealing(SelectionPolicy):
    """The set of the lowest divergence plus weighted cost that simulated annealing over the most biased neurons finds."""

    exemptions: ClassVar[Mapping[str, str]] = {
        "monotonicity": "which sets are tried is drawn, and they are judged by what is measured, not by the scores"
    }

    steps: int = 40
    """Sets that are tried: as many probes, and two more."""
    pool: float = 4.0
    """Neurons that sets are made of, as a multiple of the budget: the most biased."""
    weight: float = 0.1
    """Nats of divergence that a relative increase of perplexity by 1 counts as."""
    heat: float = 0.05
    """Temperature at the beginning, as a part of the divergence of the model; it falls to 0 linearly."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"The 'steps' must be at least 1. Got {self.steps} instead.")
        if self.pool < 1:
            raise ValueError(f"The 'pool' must be at least 1. Got {self.pool} instead.")
        for name in ("weight", "heat"):
            if getattr(self, name) < 0:
                raise ValueError(f"The '{name}' must not be negative. Got {getattr(self, name)} instead.")

    def needs(self) -> Needs:
        """Probes on `select`."""
        return Needs(probe=True)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        count, probe = budget.units(scores.sites), context.probe
        assert probe is not None
        ranked = ranking(scores, budget, scores.bias, biased(scores, eligible(scores, budget)))
        pool = list(islice(ranked, int(self.pool * count)))
        if not pool:
            return Choice(units={}, reason=NONE)

        def energy(chosen: list[tuple[str, int]]) -> float:
            found = probe(to_choice(sorted(chosen), scores.bias))
            return math.inf if found.cost > context.max_cost else found.divergence + self.weight * max(found.cost, 0.0)

        def draw(below: int) -> int:
            return int(torch.randint(below, (), generator=context.generator))

        first, state = energy([]), pool[:count]
        now = energy(state)
        best, lowest = list(state), now
        for step in range(self.steps):
            spare = sorted(set(pool) - set(state))
            if not spare:
                break
            other = list(state)
            other[draw(len(other))] = spare[draw(len(spare))]
            then, heat = energy(other), self.heat * first * (1 - step / self.steps)
            chance = float(torch.rand((), generator=context.generator))
            if then <= now or chance < math.exp((now - then) / max(heat, 1e-300)):
                state, now = other, then
                if now < lowest:
                    best, lowest = list(state), now
        if lowest >= first:
            return Choice(units={}, reason="no set that was tried lowers the divergence on select within the guard's limit")
        return to_choice(sorted(best, key=lambda at: (-float(scores.bias[at[0]][at[1]]), at)), scores.bias)
