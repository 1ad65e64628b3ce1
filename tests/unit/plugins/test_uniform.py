"""`uniform` against its formula in numpy: which units go, in which order, and how many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fairprune_framework import discovery
from fairprune_framework.api import Budget, Scores, SelectionPolicy
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection.planning import make_plan, policy_context
from fairprune_framework.testing.tiny import tiny_model

Array = NDArray[np.float64]


def made_up(family: str = "llama", levels: int | None = None) -> Scores:
    generator = np.random.default_rng(0)
    sites = recognise(tiny_model(family, layers=3)).sites

    def draw() -> dict[str, torch.Tensor]:
        found = {name: generator.random(site.units) ** 4 for name, site in sites.items()}
        if levels:
            found = {name: np.floor(value * levels) for name, value in found.items()}
        return {name: torch.from_numpy(value) for name, value in found.items()}

    seen = {name: torch.ones(site.units, dtype=torch.bool) for name, site in sites.items()}
    return Scores(sites=sites, bias=draw(), importance=draw(), by_category={}, observed=seen)


def choose(scores: Scores, budget: str, **options: Any) -> Plan:
    policy = discovery.build("policy", "uniform", options)
    assert isinstance(policy, SelectionPolicy)
    context = policy_context("remove", 0.05, lambda name: None, torch.Generator())
    return make_plan(scores, policy, Budget.parse(budget), context, "uniform", model="", fingerprint="", operator="remove")


def scaled(values: Array, how: str) -> Array:
    if how == "minmax":
        return (values - values.min()) / (values.max() - values.min())
    below = (values[:, None] > values).sum(1)
    ties = (values[:, None] == values).sum(1) - 1
    return (below + ties / 2) / (len(values) - 1)


@pytest.mark.parametrize("how", ["minmax", "rank"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("levels", [None, 5])
def test_the_highest_priorities_of_each_layer_go(how: str, weight: float, levels: int | None) -> None:
    scores = made_up(levels=levels)
    plan = choose(scores, "7/layer", weight=weight, normalisation=how)
    for name in scores.sites:
        bias, importance = (scaled(values[name].numpy(), how) for values in (scores.bias, scores.importance))
        priority = weight * bias + (1 - weight) * (1 - importance)
        expected = np.argsort(-priority, kind="stable")[:7]  # among ties the lowest index goes first
        assert plan.sites[name] == tuple(sorted(expected.tolist()))


@pytest.mark.parametrize("how", ["minmax", "rank"])
def test_units_and_zero_points_of_the_scores_do_not_matter(how: str) -> None:
    scores = made_up()
    moved = replace(
        scores,
        bias={name: 1024 * values + 3 for name, values in scores.bias.items()},
        importance={name: values / 1024 for name, values in scores.importance.items()},
    )
    assert choose(moved, "7/layer", normalisation=how).sites == choose(scores, "7/layer", normalisation=how).sites


@pytest.mark.parametrize(
    ("budget", "each"),
    [
        ("0.2", 9),
        ("0.0209", 1),
        ("0.999", 47),
        ("1/layer", 1),
        ("47/layer", 47),
        ("48/layer", 47),
        ("500/layer", 47),
        ("8n", 2),
        ("3n", 1),
    ],
)
def test_every_layer_gives_the_same_number(budget: str, each: int) -> None:
    plan = choose(made_up(), budget)
    assert [len(units) for units in plan.sites.values()] == [each] * 3
    assert not plan.abstained


@pytest.mark.parametrize(
    ("budget", "family"), [("0.02", "llama"), ("2n", "llama"), ("3/layer", "mixtral"), ("0.02", "mixtral")]
)
def test_a_share_that_rounds_to_none_says_so(budget: str, family: str) -> None:
    plan = choose(made_up(family), budget)
    assert plan.abstained
    assert plan.count == 0
    assert plan.reason is not None
    assert "less than one neuron" in plan.reason


def test_the_experts_of_a_layer_give_the_same_number() -> None:
    scores = made_up("mixtral")
    plan = choose(scores, "8/layer")
    assert [len(units) for units in plan.sites.values()] == [2] * len(scores.sites)


def test_constant_scores_take_the_first_units() -> None:
    scores = made_up()
    for values in (*scores.bias.values(), *scores.importance.values()):
        values.fill_(1.0)
    for how in ("minmax", "rank"):
        assert set(choose(scores, "2/layer", normalisation=how).sites.values()) == {(0, 1)}


@pytest.mark.parametrize(
    ("option", "value"), [("weight", 1.5), ("weight", "much"), ("normalisation", "zscore"), ("wieght", 0.5)]
)
def test_a_wrong_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        discovery.build("policy", "uniform", {option: value})
