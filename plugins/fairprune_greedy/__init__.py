"""Add neurons in chunks as long as the divergence on `select` falls and the guard's limit holds; stop or abstain otherwise.

Candidates come by falling bias outside a protected share by importance. Each chunk is masked together with what was accepted before,
and measured: it stays if the divergence falls and perplexity costs no more than allowed. After `patience` rejected chunks in a row
the search ends. Source: greedy search of UniBias (NeurIPS 2024) with the abstention of this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from fairprune_framework.api import (
    Budget,
    Choice,
    Needs,
    PolicyContext,
    Scores,
    SelectionPolicy,
    eligible,
    ranking,
    to_choice,
)


@dataclass(frozen=True, kw_only=True)
class Greedy(SelectionPolicy):
    """The highest bias first, chunk by chunk, each of them tried."""

    steps: int = 8
    """Chunks that the budget is divided into: as many probes, and one more, if none is rejected."""
    patience: int = 2
    """Rejected chunks in a row after which the search ends."""
    protect: float = 0.1
    """Share of all neurons, by importance, that is never touched."""

    def __post_init__(self) -> None:
        for name in ("steps", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"The '{name}' must be at least 1. Got {getattr(self, name)} instead.")
        if not 0 <= self.protect < 1:
            raise ValueError(f"The 'protect' must be in [0, 1). Got {self.protect} instead.")

    def needs(self) -> Needs:
        """Probes on `select`."""
        return Needs(probe=True)

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        assert context.probe is not None
        allowed = {name: may & (scores.bias[name] > 0) for name, may in eligible(scores, budget, self.protect).items()}
        most = min(budget.units(scores.sites), sum(int(may.sum()) for may in allowed.values()))
        if most == 0:
            return Choice(units={}, reason=f"the budget {budget} and the protected share leave no neuron with a bias above 0")
        candidates, size = ranking(scores, budget, scores.bias, allowed), -(-most // self.steps)
        best = first = context.probe(Choice(units={}))
        accepted: list[tuple[str, int]] = []
        rejected = 0
        while rejected < self.patience and len(accepted) < most:
            chunk = list(islice(candidates, min(size, most - len(accepted))))
            if not chunk:
                break
            measured = context.probe(to_choice([*accepted, *chunk], scores.bias))
            if measured.divergence < best.divergence and measured.cost <= context.max_cost:
                accepted, best, rejected = [*accepted, *chunk], measured, 0
            else:
                rejected += 1
        if not accepted:
            why = (
                f"no chunk of {size} neurons lowers the divergence on select ({first.divergence:.4g}) within the guard's limit"
            )
            return Choice(units={}, reason=why)
        choice = to_choice(accepted, scores.bias)
        if len(accepted) == most:
            return choice
        stopped = f"stopped at {len(accepted)} of {most} neurons: no more lower the divergence within the guard's limit"
        return Choice(units=choice.units, order=choice.order, reason=stopped)
