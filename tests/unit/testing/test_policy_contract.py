"""A policy that keeps the contract, and a bad one for each check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fairprune_framework.api import (
    Budget,
    Choice,
    PolicyContext,
    Scores,
    SelectionPolicy,
)
from fairprune_framework.testing.contracts import check_plugin


@dataclass(frozen=True, kw_only=True)
class Top(SelectionPolicy):
    """Take the same number of the most biased units of each site."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        units, order = {}, {}
        for name, site in scores.sites.items():
            if site.layer in budget.protected_layers:
                continue
            layers = {other.layer for other in scores.sites.values()}
            share = min(budget.units(scores.sites) // len(scores.sites), site.units - 1)
            if budget.unit == "per-layer":
                share = min(int(budget.amount) * len(layers) // len(scores.sites), site.units - 1)
            usable = scores.observed[name] & (scores.bias[name] > 0 if scores.signed else True)
            ranked = torch.sort(self.key(scores, name).masked_fill(~usable, -torch.inf), descending=True, stable=True)
            count = min(share, int(usable.sum()))
            units[name], order[name] = ranked.indices[:count], ranked.values[:count]
        chosen = sum(map(len, units.values()))
        return Choice(units=units, order=order, reason=None if chosen else "the budget comes to less than one unit of a site")

    def key(self, scores: Scores, name: str) -> Tensor:
        return scores.bias[name]


def test_a_good_policy_passes_every_check() -> None:
    report = check_plugin("policy", Top()).raise_if_failed()
    assert len(report.passed) == len(report.checks)


@dataclass(frozen=True, kw_only=True)
class Ranked(Top):
    """Ranks all units of each site, and leaves it to the core to trim."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        reason = None if budget.units(scores.sites) else "the budget comes to less than one unit"
        return Choice(
            units={name: torch.sort(scores.bias[name], descending=True, stable=True).indices for name in scores.sites},
            reason=reason,
        )


def test_a_policy_that_leaves_the_trimming_to_the_core_passes_every_check() -> None:
    check_plugin("policy", Ranked(), skip={"hash-seed": "it goes through no set"}).raise_if_failed()


def policy(select: Callable[[Scores, Budget, Choice], Choice]) -> Top:
    """A policy with a last line of its own; it gets the good choice."""

    @dataclass(frozen=True, kw_only=True)
    class Bad(Top):
        """Bad."""

        def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
            return select(scores, budget, super().select(scores, budget, context))

    return Bad()


def refusing(when: Callable[[Budget], bool]) -> Top:
    def select(scores: Scores, budget: Budget, choice: Choice) -> Choice:
        if when(budget):
            raise NotImplementedError(str(budget))
        return choice

    return policy(select)


def each_site(take: Callable[[Scores, str], Tensor]) -> Top:
    return policy(lambda scores, budget, choice: Choice(units={name: take(scores, name) for name in scores.sites}))


def above_middle(scores: Scores, name: str) -> Tensor:
    bias = scores.bias[name]
    middle = (bias - bias.min()) / (bias.max() - bias.min())  # 0 / 0 where all are equal
    return (middle > 0.5).nonzero().squeeze(1)


def nearest_to_a_half(scores: Scores, name: str) -> Tensor:
    """Units whose bias is near a half: raised, they are not."""
    return (scores.bias[name] - 0.5).abs().argsort()[:3]


def lowered(scores: Scores, budget: Budget, choice: Choice) -> Choice:
    for bias in scores.bias.values():
        bias -= 0.1
    return choice


@dataclass(frozen=True, kw_only=True)
class Resampling(Top):
    """Bad: it did not declare replicates."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        next(iter(context.replicates()))
        return super().select(scores, budget, context)


@dataclass(frozen=True, kw_only=True)
class Probing(Top):
    """Bad: it did not declare a probe."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        choice = super().select(scores, budget, context)
        context.probe(choice)  # type: ignore[misc]
        return choice


@dataclass(frozen=True, kw_only=True)
class Counting(Top):
    """Bad: it remembers how often it was asked."""

    asked: int = 0

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        object.__setattr__(self, "asked", self.asked + 1)
        return super().select(scores, budget, context)


ELSEWHERE = "model.layers.99.mlp"


@pytest.mark.parametrize(
    ("check", "plugin"),
    [
        ("fraction-budget", Resampling()),
        ("fraction-budget", Probing()),
        ("factors-under-scale", policy(lambda s, b, c: replace(c, factor=0.5))),
        (
            "factors-under-scale",
            policy(lambda s, b, c: replace(c, factors={n: torch.full((len(u),), 0.5) for n, u in c.units.items()})),
        ),
        (
            "valid-units",
            policy(lambda s, b, c: replace(c, factors={n: torch.full((len(u),), 99.0) for n, u in c.units.items()})),
        ),
        ("valid-units", policy(lambda s, b, c: replace(c, order={ELSEWHERE: torch.zeros(1)}))),
        ("valid-units", policy(lambda s, b, c: replace(c, categories={ELSEWHERE: torch.zeros(1, dtype=torch.int64)}))),
        ("valid-units", policy(lambda s, b, c: replace(c, order={n: order[:-1] for n, order in c.order.items()}))),
        (
            "valid-units",
            policy(lambda s, b, c: replace(c, categories={n: torch.full((len(u),), 0.5) for n, u in c.units.items()})),
        ),
        ("valid-units", policy(lambda s, b, c: replace(c, units={n: u.tolist() for n, u in c.units.items()}))),  # type: ignore[misc]
        ("valid-units", policy(lambda s, b, c: replace(c, units={n: u.double() for n, u in c.units.items()}))),
        ("valid-units", policy(lambda s, b, c: replace(c, units=list(c.units)))),  # type: ignore[arg-type]
        ("valid-units", policy(lambda s, b, c: dict(c.units))),  # type: ignore[arg-type, return-value]
        ("valid-units", policy(lambda s, b, c: None)),  # type: ignore[arg-type, return-value]
        ("fraction-budget", refusing(lambda budget: budget.unit == "fraction")),
        ("fraction-budget", policy(lambda scores, budget, choice: Choice(units={}))),
        ("total-budget", refusing(lambda budget: budget.unit == "total")),
        ("per-layer-budget", refusing(lambda budget: budget.unit == "per-layer")),
        ("unlimited-budget", refusing(lambda budget: budget.amount > 500)),
        ("unlimited-budget", each_site(lambda scores, name: scores.bias[name].topk(60).indices)),
        ("valid-units", each_site(lambda scores, name: torch.tensor([1, 0], dtype=torch.int32))),
        ("valid-units", each_site(lambda scores, name: torch.tensor([1, 1]))),
        ("valid-units", each_site(lambda scores, name: torch.tensor([-1]))),
        ("valid-units", each_site(lambda scores, name: torch.tensor([scores.sites[name].units]))),
        ("valid-units", policy(lambda scores, budget, choice: Choice(units={"model.layers.99.mlp": torch.tensor([0])}))),
        ("valid-units", policy(lambda s, b, c: replace(c, factors={ELSEWHERE: torch.ones(1)}))),
        ("descending-order", policy(lambda s, b, c: replace(c, order={n: order * torch.nan for n, order in c.order.items()}))),
        ("descending-order", policy(lambda s, b, c: replace(c, order={name: -order for name, order in c.order.items()}))),
        ("deterministic-with-ties", each_site(lambda scores, name: torch.randperm(scores.sites[name].units)[:3])),
        ("constant-scores", each_site(above_middle)),
        (
            "protected-layers",
            policy(lambda s, b, c: Choice(units={n: torch.arange(3) for n in s.sites if s.sites[n].layer == 0})),
        ),
        ("unobserved-units", each_site(lambda scores, name: scores.bias[name].topk(3).indices)),
        ("signed-scores", each_site(lambda scores, name: scores.bias[name].argsort()[:3])),
        ("layer-share", refusing(lambda budget: budget.max_layer_share < 1)),
        ("monotonicity", each_site(nearest_to_a_half)),
        ("monotonicity", each_site(lambda scores, name: scores.bias[name].argsort()[:3])),
        ("site-order", policy(lambda scores, budget, choice: Choice(units={next(iter(scores.sites)): torch.arange(3)}))),
        ("wide-units", each_site(lambda s, name: torch.arange(s.sites[name].units * s.sites[name].unit_width)[-3:])),
        ("no-mutation", policy(lowered)),
        ("no-mutation", Counting()),
    ],
)
def test_a_bad_policy_is_caught(check: str, plugin: Top, fails: Callable[..., None]) -> None:
    fails("policy", plugin, check)


def test_every_check_has_a_bad_plugin(common: set[str]) -> None:
    """The test above, read back: no check may be without a plugin that fails it."""
    (mark,) = test_a_bad_policy_is_caught.pytestmark  # type: ignore[attr-defined]
    caught = {check for check, _ in mark.args[1]} | common | {"hash-seed"}  # of which test_interpreters.py has them
    assert set(check_plugin("policy", Top(), only=[]).checks) == caught
