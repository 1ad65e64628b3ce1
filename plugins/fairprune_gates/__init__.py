"""Turn many neurons down or up a little, where it lowers the bias most for what it costs, in place of removing a few.

Neuron i is multiplied by 1 + d_i. To first order the divergence of the answers changes by A . d, A the bias score (attribution), and to
second order the language loss by 1/2 sum F d^2, F the importance score (the Fisher diagonal: taylor, power 2, labels of the model). The
gates are the d within [-cap, cap] that lower A . d most at a given cost, under linear constraints: the divergence of controls stays
(A_control . d = 0), that of no category rises (A_k . d <= 0; of those left alone A_k . d = 0), and recalled words become no less
likely (R . d <= 0). Source: this project, docs/method/gates.md; the trade of a linear benefit for a quadratic Fisher cost goes back to
optimal brain damage (LeCun, Denker and Solla 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fairprune_framework.api import Budget, Choice, Held, PolicyContext, Scores, SelectionPolicy, eligible, select_top

from .program import Program

Joined = Callable[[Mapping[str, Tensor]], Tensor]
STILL = 1e-7
"""A factor that is no further from 1 than this is 1 in float32: what is left where the constraints forbid every gate."""


@dataclass(frozen=True, kw_only=True)
class Gates(Held, SelectionPolicy):
    """A factor in [1 - cap, 1 + cap] for each of the most useful neurons; for the operator `scale`."""

    exemptions: ClassVar[Mapping[str, str]] = {
        "signed-scores": "a gate turns neurons up that lower the bias, and so plans units below 0 on purpose",
        "factors-under-scale": "gates are factors: the operator scale alone carries them out",
    }
    cap: float = 0.5
    """Largest change of a factor."""
    cost: float = 0.0005
    """Second-order cost of the gates, 1/2 sum F d^2, as a share of that of removing all neurons, 1/2 sum F; the `cost` of `knapsack`."""

    leave: tuple[str, ...] = ()
    """Categories whose bias is neither lowered nor raised, to first order: those that show none to lower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cap", "cost"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"The {name!r} must be above 0 and at most 1. Got {getattr(self, name)} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`.

        Raises:
            ValueError: an importance is below 0, there are no controls where they are needed, or `leave` names an unknown category.
        """
        if min(float(values.min()) for values in scores.importance.values()) < 0:
            raise ValueError(
                "gates need an importance score that is never negative: a second-order cost, as of taylor with power 2"
            )
        allowed = eligible(scores, budget)
        if not allowed:
            return Choice(units={}, reason="all layers are protected")
        floor = _floor(scores)
        cost_of = {name: values + floor for name, values in scores.importance.items()}
        worth = {name: bias.square() / cost_of[name] for name, bias in scores.bias.items()}
        moved = {name: may & (scores.bias[name] != 0) for name, may in allowed.items()}
        falls, rises = self.may_fall(moved, context), self.may_rise(moved, context)
        useful = {name: torch.where(bias > 0, falls[name], rises[name]) for name, bias in scores.bias.items() if name in moved}
        chosen = select_top(scores, budget, worth, useful, "no neuron has a bias other than 0")
        if not any(map(len, chosen.units.values())):
            return chosen
        if not any(bool(values.any()) for values in scores.importance.values()):
            return Choice(units={}, reason="every importance is 0: no cost limits the gates")
        names = [name for name, units in chosen.units.items() if len(units)]

        def joined(values: Mapping[str, Tensor]) -> Tensor:
            return torch.cat([values[name].double()[chosen.units[name]] for name in names])

        program = Program(
            slope=joined(scores.bias),
            curvature=joined(cost_of),
            low=-self.cap * joined(falls),
            high=self.cap * joined(rises),
            equal=_stacked([*self.control_slopes(scores, names, context), *self._left(scores)], joined),
            at_most=_stacked(self.limits(scores, names, context), joined),
        )
        gates = program.solve(self._cost(scores, floor), joined(scores.importance))
        if not bool((gates.abs() > STILL).any()):
            return Choice(units={}, reason="no gate lowers the bias under the constraints")
        sizes = [len(chosen.units[name]) for name in names]
        return replace(chosen, factors=dict(zip(names, torch.split(1 + gates, sizes), strict=True)))

    def _left(self, scores: Scores) -> list[Mapping[str, Tensor]]:
        """Rows, site -> (N,), of which row . d must be 0: the bias of each category of `leave`."""
        if unknown := sorted(set(self.leave) - set(scores.by_category)):
            raise ValueError(f"'leave' names {unknown[0]!r}; the categories are {', '.join(sorted(scores.by_category))}.")
        return [self.category_slopes(scores, category) for category in self.leave]

    def _cost(self, scores: Scores, floor: float) -> float:
        """A share of a sum over all neurons: of a few it would hang on which of the most important ones are just among them."""
        total = sum(float(scores.importance[name].double().sum()) for name in sorted(scores.importance))
        return self.cost * 0.5 * max(total, floor)


def _floor(scores: Scores) -> float:
    """Added to every cost: its 5 % quantile, so that a silent neuron is not free."""
    every = torch.cat(list(scores.importance.values())).double()
    found = float(torch.sort(every).values[len(every) // 20])
    return max(found, float(every.mean()) * 1e-6, torch.finfo(torch.float64).tiny)


def _stacked(rows: Sequence[Mapping[str, Tensor]], joined: Joined) -> Tensor:
    """(R, N) float64; (0, 0) without rows."""
    return torch.stack([joined(row) for row in rows]) if rows else torch.zeros(0, 0, dtype=torch.float64)
