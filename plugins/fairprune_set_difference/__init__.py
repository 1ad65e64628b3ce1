"""The most biased neurons minus the most useful ones.

Chosen are the top `biased` share of all neurons by bias that are not among the top `useful` share by importance, highest bias first,
up to the budget. Source: the set difference of Wei et al. (ICML 2024), top q % safety minus top p % utility, for neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairprune_framework.api import Budget, Choice, PolicyContext, Scores, SelectionPolicy, eligible, select_top, top_share


@dataclass(frozen=True, kw_only=True)
class SetDifference(SelectionPolicy):
    """The top share by bias without the top share by importance."""

    biased: float = 0.02
    """q: share of all neurons, by bias, that may go; at least one neuron."""
    useful: float = 0.1
    """p: share of all neurons, by importance, that stays."""

    def __post_init__(self) -> None:
        for name in ("biased", "useful"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"The '{name}' must be in [0, 1). Got {getattr(self, name)} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """See `SelectionPolicy.select`."""
        allowed = eligible(scores, budget, self.useful)
        if not allowed:
            return Choice(units={}, reason="all layers are protected")
        observed = {name: scores.bias[name].masked_fill(~scores.observed[name], -float("inf")) for name in allowed}
        top = top_share(observed, self.biased)
        difference = {name: may & top[name] & (scores.bias[name] > 0) for name, may in allowed.items()}
        nothing = f"no neuron of the top {self.biased:.2%} by bias is outside the top {self.useful:.2%} by importance"
        return select_top(scores, budget, scores.bias, difference, nothing)
