"""What a policy takes of given scores, for the tests of policies."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from fairprune_framework import discovery
from fairprune_framework.api import Budget, Choice, PolicyContext, Scores, SelectionPolicy


class Decide(Protocol):
    """A policy by its name, with its options, under a budget. Words that are no options are those of its context."""

    def __call__(
        self,
        policy: str,
        budget: str | Budget,
        scores: Scores = ...,
        *,
        at: Any = None,
        resampled: Any = None,
        probe: Any = None,
        seed: int = 0,
        max_cost: float = 0.05,
        **options: Any,
    ) -> Choice: ...


def decider(usual: Scores) -> Decide:
    """`decide`, with the scores that it takes where none are given."""

    def decide(
        policy: str,
        budget: str | Budget,
        scores: Scores = usual,
        *,
        at: Any = None,
        resampled: Any = None,
        probe: Any = None,
        seed: int = 0,
        max_cost: float = 0.05,
        **options: Any,
    ) -> Choice:
        made = discovery.build("policy", policy, options)
        assert isinstance(made, SelectionPolicy)
        context = PolicyContext(
            operator="zero",
            max_cost=max_cost,
            at=at,
            replicates=resampled,
            probe=probe,
            generator=torch.Generator().manual_seed(seed),
        )
        return made.select(scores, budget if isinstance(budget, Budget) else Budget.parse(budget), context)

    return decide
