"""Policies that search, subtract and draw, against plain loops over sorted lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fairprune_framework import discovery
from fairprune_framework.api import Budget, Choice, Measurement, PolicyContext, Scores, SelectionPolicy
from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection.planning import make_plan, no_replicates
from fairprune_framework.testing.policy_contract import made_up
from fairprune_framework.testing.tiny import tiny_model

SCORES = made_up(recognise(tiny_model("llama", layers=3)))
Units = dict[str, set[int]]


def policy_of(name: str, **options: Any) -> SelectionPolicy:
    made = discovery.build("policy", name, options)
    assert isinstance(made, SelectionPolicy)
    return made


def plan_of(
    policy: SelectionPolicy,
    budget: str,
    probe: Callable[[Choice], Measurement] | None = None,
    scores: Scores = SCORES,
    seed: int = 0,
    **limits: Any,
) -> Plan:
    context = PolicyContext(
        operator="zero",
        max_cost=0.05,
        at=lambda site: pytest.fail("no statistics were asked for"),
        replicates=no_replicates,
        probe=probe,
        generator=torch.Generator().manual_seed(seed),
    )
    return make_plan(scores, policy, Budget.parse(budget, **limits), context, "it", model="", fingerprint="", operator="zero")


def ranked(scores: Scores = SCORES, protect: float = 0.0) -> list[tuple[str, int]]:
    """By falling bias, without the top share by importance: a plain loop."""
    every = [(name, unit) for name in sorted(scores.sites) for unit in range(scores.sites[name].units)]
    by_importance = sorted(every, key=lambda at: -scores.importance[at[0]][at[1]].item())
    shielded = set(by_importance[: int(protect * len(every))])
    return sorted((at for at in every if at not in shielded), key=lambda at: -scores.bias[at[0]][at[1]].item())


def as_units(pairs: list[tuple[str, int]]) -> Units:
    found: Units = {}
    for name, unit in pairs:
        found.setdefault(name, set()).add(unit)
    return found


def planned(plan: Plan) -> Units:
    return {name: set(units) for name, units in plan.sites.items()}


def test_set_difference_is_a_difference_of_sets() -> None:
    every = sum(site.units for site in SCORES.sites.values())
    top = set(ranked()[: int(0.2 * every)])
    useful = {at for at in ranked() if at not in ranked(protect=0.3)}
    expected = as_units([at for at in ranked() if at in top - useful])
    plan = plan_of(policy_of("set-difference", biased=0.2, useful=0.3), "0.9")
    assert planned(plan) == expected
    assert 0 < plan.count < int(0.2 * every)
    small = plan_of(policy_of("set-difference", biased=0.2, useful=0.3), "5n")
    assert planned(small) == as_units([at for at in ranked() if at in top - useful][:5])


class Oracle:
    """Some units help, others hurt; all cost. Keeps what it was asked."""

    def __init__(self, worth: Callable[[str, int], float], cost: float = 0.0) -> None:
        self.worth, self.cost = worth, cost
        self.asked: list[int] = []

    def __call__(self, choice: Choice) -> Measurement:
        units = [(name, int(unit)) for name, found in choice.units.items() for unit in found]
        self.asked.append(len(units))
        cost = self.cost * len(units)
        divergence = 1 - sum(self.worth(*at) for at in units)
        return Measurement(divergence=divergence, cost=cost, retention=1 / (1 + cost))


def greedy_by_hand(oracle: Oracle, most: int, steps: int, patience: int, protect: float) -> list[tuple[str, int]]:
    queue, size = ranked(protect=protect), -(-most // steps)
    kept: list[tuple[str, int]] = []
    bad = 0
    while queue and len(kept) < most and bad < patience:
        chunk, queue = queue[: min(size, most - len(kept))], queue[min(size, most - len(kept)) :]
        fits = (len(kept) + len(chunk)) * oracle.cost <= 0.05
        if fits and sum(oracle.worth(*at) for at in chunk) > 0:
            kept, bad = kept + chunk, 0
        else:
            bad += 1
    return kept


@pytest.mark.parametrize(("cost", "patience"), [(0.0, 2), (0.0, 3), (0.004, 2)])
def test_greedy_keeps_chunks_that_help(cost: float, patience: int) -> None:
    oracle = Oracle(lambda name, unit: 0.001 if unit % 3 else -0.0015, cost)
    plan = plan_of(policy_of("greedy", steps=10, patience=patience, protect=0.2), "20n", oracle)
    expected = greedy_by_hand(oracle, 20, 10, patience, 0.2)
    assert planned(plan) == as_units(expected)
    assert plan.count <= 20
    assert (plan.reason is None) == (plan.count == 20)
    assert oracle.asked[0] == 0


def test_greedy_abstains_where_nothing_helps_or_all_costs_too_much() -> None:
    for oracle in (Oracle(lambda name, unit: -1.0), Oracle(lambda name, unit: 1e-3, cost=0.06), Oracle(lambda name, unit: 0.0)):
        plan = plan_of(policy_of("greedy", patience=2), "16n", oracle)
        assert plan.abstained
        assert "lowers the divergence on select" in (plan.reason or "")
        assert oracle.asked == [0, 2, 2]


def test_greedy_takes_no_neuron_without_bias() -> None:
    """However large the budget is, and although every neuron would help."""
    name = next(iter(SCORES.bias))
    few = torch.zeros_like(SCORES.bias[name])
    few[[3, 7]] = 0.5
    bias = {site: few if site == name else torch.zeros_like(value) for site, value in SCORES.bias.items()}
    oracle = Oracle(lambda site, unit: 0.001)
    plan = plan_of(policy_of("greedy", steps=2, protect=0.0), "20n", oracle, replace(SCORES, bias=bias))
    assert planned(plan) == {name: {3, 7}}


def test_random_draws_by_seed_and_looks_at_nothing() -> None:
    policy = policy_of("random")
    first, again, other = (plan_of(policy, "20n", seed=seed) for seed in (1, 1, 2))
    assert first.sites == again.sites != other.sites
    assert first.count == 20
    below = replace(SCORES, bias={name: value - 2 for name, value in SCORES.bias.items()}, signed=True)
    assert plan_of(policy, "20n", scores=below, seed=1).sites == first.sites  # a control takes units at or below 0 as well
    assert plan_of(policy_of("set-difference"), "20n", scores=below).count == 0
    limited = plan_of(policy, "30n", max_layer_share=0.1, protected_layers=frozenset({0}))
    assert {name: len(units) for name, units in limited.sites.items()} == {"model.layers.1.mlp": 4, "model.layers.2.mlp": 4}


def test_random_is_uniform() -> None:
    counts = {name: torch.zeros(site.units) for name, site in SCORES.sites.items()}
    policy = policy_of("random")
    for seed in range(300):
        for name, units in plan_of(policy, "24n", seed=seed).sites.items():
            counts[name][list(units)] += 1
    drawn = torch.cat(list(counts.values()))  # 300 draws of 24 from 144: 50 each, binomial sd 6.5
    assert drawn.sum() == 300 * 24
    assert drawn.std() == pytest.approx((300 * (1 / 6) * (5 / 6)) ** 0.5, rel=0.2)
