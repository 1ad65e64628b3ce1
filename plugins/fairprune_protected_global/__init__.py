"""Protect the most important neurons, then take the most biased of all layers.

The top `protect` share of all neurons by importance is never touched; of the others the highest bias goes first, over all layers
together. Neurons with a bias of 0 or below are not chosen. Source: the two-stage rule of FASP (Zayed et al., AAAI 2024), for neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairprune_framework.api import Budget, Choice, PolicyContext, Scores, SelectionPolicy, eligible, take


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
        allowed = eligible(scores, budget, self.protect)
        if not allowed:
            return Choice(units={}, reason="all layers are protected")
        biased = {name: may & (scores.bias[name] > 0) for name, may in allowed.items()}
        nothing = f"the budget {budget} and the protected share leave no neuron with a bias above 0"
        return take(scores, budget, scores.bias, biased, nothing)
