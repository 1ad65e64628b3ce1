"""Policies at the edges of what they promise: ties, limits that just bind, negative importance, what is said where nothing is chosen."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.api import Budget, Choice, Measurement, Scores
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.policy_contract import made_up
from fairprune_framework.testing.tiny import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from deciding import decider

ARCHITECTURE = recognise(tiny_model("llama", layers=3))
SCORES, OTHER = made_up(ARCHITECTURE), made_up(ARCHITECTURE, 1)
NAMES = sorted(SCORES.sites)
decide = decider(SCORES)
FIRST, SECOND, THIRD = NAMES


def units_of(choice: Choice) -> set[tuple[str, int]]:
    return {(name, int(unit)) for name, units in choice.units.items() for unit in units}


def at_places(values: Mapping[tuple[str, int], float], others: float = 0.0) -> dict[str, Tensor]:
    """site -> (48,) of these values, and `others` elsewhere."""
    found = {name: torch.full((48,), others, dtype=torch.float64) for name in NAMES}
    for (name, unit), value in values.items():
        found[name][unit] = value
    return found


UNITLESS: dict[str, dict[str, Any]] = {
    "global": {},
    "standardised-global": {},
    "two-stage": {},
    "bias-proportional": {},
    "pareto": {},
    "knapsack": {"cost": 0.02},
    "category-intersection": {"share": 0.3},
    "stable": {"frequency": 0.5, "replicates": 2},
    "protected-global": {"exchange": 1.0},
    "set-difference": {"biased": 0.3},
    "uniform": {},
    "random": {"protect": 0.3},
    "gates": {"specific": False, "legitimate": False, "recall": False, "cost": 0.02},
}


@pytest.mark.parametrize("policy", UNITLESS)
@pytest.mark.parametrize(("bias", "importance"), [(2.0**-60, 1.0), (2.0**40, 1.0), (1.0, 2.0**-60), (1.0, 2.0**20)])
def test_the_units_of_both_scores_do_not_matter(policy: str, bias: float, importance: float) -> None:
    def of(bias: float, importance: float) -> Choice:
        sized = [
            replace(
                scores,
                bias={name: bias * values for name, values in scores.bias.items()},
                importance={name: importance * values for name, values in scores.importance.items()},
                by_category={
                    "one": {name: bias * values for name, values in scores.bias.items()},
                    "two": {name: bias * values for name, values in OTHER.bias.items()},
                },
            )
            for scores in (SCORES, OTHER)
        ]
        return decide(policy, "20n", sized[0], resampled=lambda: iter(sized), **UNITLESS[policy])

    usual, found = of(1.0, 1.0), of(bias, importance)
    assert 0 < len(units_of(usual)) <= 24
    assert found.units.keys() == usual.units.keys()
    for name, units in usual.units.items():
        assert found.units[name].tolist() == units.tolist()
        if usual.factors:
            torch.testing.assert_close(found.factors[name], usual.factors[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", ["gates", "knapsack"])
def test_a_site_that_a_category_never_reached_does_not_change_it(policy: str) -> None:
    """As if its bias were 0 there: experts of a mixture that its texts were not sent to."""
    slopes = SimpleNamespace(
        count=1, sums={"control-slopes.product": torch.randn(1, 48, generator=torch.Generator().manual_seed(1)).double()}
    )
    words = {"specific": True, "legitimate": False, "recall": False, "cost": 0.02}
    found = []
    for elsewhere in ({}, {FIRST: torch.zeros(48, dtype=torch.float64)}):
        seldom = {name: values for name, values in OTHER.bias.items() if name != FIRST} | elsewhere
        scores = replace(SCORES, by_category={"often": dict(SCORES.bias), "seldom": seldom})
        found.append(decide(policy, "40n", scores, at=lambda name: SimpleNamespace(of=lambda stream: slopes), **words))
    one, two = found
    assert units_of(one) == units_of(two) != set()
    assert all(one.factors[name].equal(two.factors[name]) for name in two.factors)


# -- knapsack --------------------------------------------------------------------------------------------------------------


def test_knapsack_leaves_a_unit_of_each_site_and_fills_the_budget_elsewhere() -> None:
    """All 48 of one site are worth more than any other: 47 of them go, and one of another site."""
    steep = replace(SCORES, bias={name: SCORES.bias[name] + (10 if name == SECOND else 0) for name in NAMES})
    found = units_of(decide("knapsack", "48n", steep, cost=1.0))
    assert len(found) == 48
    assert sum(name == SECOND for name, _ in found) == 47


def test_importance_counts_from_the_lowest_only_where_that_is_below_zero() -> None:
    bias = at_places({(FIRST, 0): 3.0, (FIRST, 1): 2.0})
    dear = at_places({(FIRST, 0): 3.0}, others=1.0)  # 143 + 3 = 146 in all
    scores = replace(SCORES, bias=bias, importance=dear)
    assert units_of(decide("knapsack", "2n", scores, cost=4.1 / 146)) == {(FIRST, 0), (FIRST, 1)}
    assert units_of(decide("knapsack", "2n", scores, cost=3.9 / 146)) == {(FIRST, 0)}
    shifted = replace(scores, importance={name: values - 6.0 for name, values in dear.items()})
    assert units_of(decide("knapsack", "2n", shifted, cost=0.999)) == {(FIRST, 1)}  # the one that costs anything is too dear
    assert units_of(decide("knapsack", "2n", shifted, cost=1.0)) == {(FIRST, 0), (FIRST, 1)}


def test_knapsack_where_nothing_costs_anything() -> None:
    free = replace(SCORES, importance=at_places({}))
    top = units_of(decide("global", "9n"))
    assert units_of(decide("knapsack", "9n", free)) == top


def test_knapsack_says_why_nothing_fits() -> None:
    alone = at_places({(FIRST, 0): 1.0})
    scores = replace(SCORES, bias=alone, importance=at_places({(FIRST, 0): 5.0}, others=1.0))
    choice = decide("knapsack", "2n", scores, cost=0.01)
    assert (choice.units, choice.reason) == ({}, "no neuron fits into 1.00% of all importance")
    rising = SimpleNamespace(count=1, sums={"control-slopes.product": -torch.ones(1, 48, dtype=torch.float64)})
    held = decide("knapsack", "2n", scores, cost=0.01, specific=True, at=lambda name: SimpleNamespace(of=lambda stream: rising))
    assert held.reason == "no neuron fits into 1.00% of all importance and keeps what is held"


# -- category-intersection ---------------------------------------------------------------------------------------------------


def test_at_least_one_neuron_is_among_the_most_biased_of_a_category() -> None:
    one = at_places({(SECOND, 7): 5.0}, others=1.0)
    scores = replace(SCORES, bias=one, by_category={"a": one, "b": one})
    assert units_of(decide("category-intersection", "9n", scores, share=1e-6)) == {(SECOND, 7)}


def test_a_category_that_did_not_see_a_site_gives_it_no_vote() -> None:
    both = at_places({(name, 3): 5.0 for name in NAMES}, others=1.0)
    seldom = {name: values for name, values in both.items() if name != FIRST}
    scores = replace(SCORES, bias=both, by_category={"a": both, "b": seldom, "c": {}})
    most = decide("category-intersection", "9n", scores, share=0.02, least=2)  # 2 of the 144 neurons, 1 of the 96
    assert units_of(most) <= {(SECOND, 3), (THIRD, 3)}
    assert most.units
    nothing = decide("category-intersection", "9n", scores, share=0.02)
    assert nothing.reason == "no neuron with a bias above 0 is in the top 2.0% of 3 categories"


# -- stable ------------------------------------------------------------------------------------------------------------------


def test_stable_takes_the_more_frequent_before_the_more_biased() -> None:
    """Two of four bootstraps are enough; the third neuron has a thousand times the bias, and is in two."""
    often, also, high = (FIRST, 0), (SECOND, 1), (THIRD, 2)
    drawn = [(often, also), (often, also), (often, high), (high, also)]

    def resampled() -> Iterator[Scores]:
        for pair in drawn:
            yield replace(SCORES, bias=at_places(dict.fromkeys(pair, 1.0)))

    scores = replace(SCORES, bias=at_places({often: 1.0, also: 1.0, high: 1000.0}))
    options = {"frequency": 0.5, "replicates": 4, "resampled": resampled}
    assert units_of(decide("stable", "2n", scores, **options)) == {often, also}
    equal = replace(SCORES, bias=at_places({often: 1.0, also: 2.0, high: 3.0}))
    assert units_of(decide("stable", "2n", equal, **options)) == {often, also}
    first = decide("stable", "1n", equal, frequency=0.5, replicates=4, resampled=lambda: iter([equal] * 4))
    assert units_of(first) == {high}
    tied = [replace(SCORES, bias=at_places({also: 1.0})), replace(SCORES, bias=at_places({high: 1.0}))]
    chosen = decide("stable", "1n", equal, frequency=0.5, replicates=2, resampled=lambda: iter(tied))
    assert units_of(chosen) == {high}  # as often as the other, and more biased
    never = decide("stable", "1n", equal, frequency=1.0, replicates=2, resampled=lambda: iter(tied))
    assert never.reason == "no neuron is within the budget 1n in 100% of 2 bootstraps"


# -- annealing ---------------------------------------------------------------------------------------------------------------


class Watched:
    """Measures a choice by a function of its units, and remembers what it was asked."""

    def __init__(self, divergence: Any, cost: Any = lambda units: 0.0) -> None:
        self.divergence, self.cost = divergence, cost
        self.seen: list[frozenset[tuple[str, int]]] = []

    def __call__(self, choice: Choice) -> Measurement:
        units = frozenset(units_of(choice))
        self.seen.append(units)
        cost = self.cost(units)
        return Measurement(divergence=self.divergence(units), cost=cost, retention=1 / (1 + cost))


def worth(units: frozenset[tuple[str, int]]) -> float:
    """Divergence: each unit lowers it by a thousandth of its number."""
    return 1 - sum(unit for _, unit in units) / 1000


def test_annealing_gives_back_the_best_set_that_it_tried_however_hot_it_was() -> None:
    """So hot that every exchange is taken: the walk passes better sets than the one where it ends."""
    watched = Watched(worth)
    found = units_of(decide("annealing", "5n", probe=watched, heat=1e9, steps=60))
    assert frozenset(found) == min(watched.seen, key=worth)
    one, last = watched.seen[1], watched.seen[-1]
    assert len(one - last) > 1  # it went on from sets that were worse
    assert all(len(former - later) <= 1 for former, later in zip(watched.seen[1:], watched.seen[2:], strict=False))


def test_without_heat_every_set_is_one_exchange_from_the_best_so_far() -> None:
    watched = Watched(worth)
    decide("annealing", "5n", probe=watched, heat=0.0, steps=60)
    assert watched.seen[0] == frozenset()
    best = watched.seen[1]
    for tried in watched.seen[2:]:
        assert len(tried) == 5
        assert len(tried - best) == 1
        best = min(best, tried, key=worth)


def test_the_pool_is_a_multiple_of_the_budget() -> None:
    watched = Watched(worth)
    decide("annealing", "4n", probe=watched, pool=2.5, steps=300)
    assert frozenset.union(*watched.seen) == units_of(decide("global", "10n"))
    alone = Watched(worth)
    assert len(units_of(decide("annealing", "4n", probe=alone, pool=1.0))) == 4
    assert len(alone.seen) == 2  # there is nothing to exchange


def test_annealing_weighs_what_a_set_costs_and_gives_nothing_for_a_gain() -> None:
    """Divergence falls by 0.01 a neuron, perplexity rises by 1 %: that is 0.01 nats at a weight of 1."""
    cheap = Watched(lambda units: 1 - 0.01 * len(units), lambda units: 0.01 * len(units))
    assert units_of(decide("annealing", "4n", probe=cheap, weight=0.9))
    refused = decide("annealing", "4n", probe=cheap, weight=1.1)
    assert refused.reason == "no set that was tried lowers the divergence on select within the guard's limit"
    gain = Watched(lambda units: 1.0, lambda units: -0.01 * len(units))
    assert not decide("annealing", "4n", probe=gain, weight=1.0).units


def test_annealing_in_a_plain_loop() -> None:
    """What is drawn, what is kept: by chance exp(-worse / heat), the heat a part of the model's divergence that falls linearly."""
    generator, steps, heat = torch.Generator().manual_seed(3), 50, 0.02
    pool = sorted(units_of(decide("global", "20n")), key=lambda at: (-float(SCORES.bias[at[0]][at[1]]), at))
    model, tried = worth(frozenset()), [frozenset(), frozenset(pool[:5])]
    state = pool[:5]
    for step in range(steps):
        spare = sorted(set(pool) - set(state))
        comes = spare[int(torch.randint(len(spare), (), generator=generator))]
        goes = int(torch.randint(5, (), generator=generator))
        other = [comes if place == goes else unit for place, unit in enumerate(state)]
        tried.append(frozenset(other))
        worse = worth(frozenset(other)) - worth(frozenset(state))
        chance = float(torch.rand((), generator=generator))
        if worse <= 0 or chance < math.exp(-worse / (heat * model * (steps - step) / steps)):
            state = other
    watched = Watched(worth)
    choice = decide("annealing", "5n", probe=watched, heat=heat, steps=steps, seed=3)
    assert watched.seen == tried
    assert units_of(choice) == min(tried, key=worth)
    for name, units in choice.units.items():
        assert units.tolist() == sorted(units.tolist(), key=lambda unit, name=name: -float(SCORES.bias[name][unit]))


def test_the_unit_of_the_divergence_does_not_matter() -> None:
    small, large = Watched(worth), Watched(lambda units: 1024 * worth(units))
    for watched in (small, large):
        decide("annealing", "5n", probe=watched, heat=0.02, steps=40, weight=0.0)
    assert small.seen == large.seen
    assert len({frozenset(each) for each in small.seen}) > 10


# -- pareto ------------------------------------------------------------------------------------------------------------------


def test_a_front_starts_with_the_highest_bias_also_where_others_are_far_below_zero() -> None:
    """Three neurons are one front: none is both more biased and cheaper than another."""
    bias = {(FIRST, 0): 3.0, (SECOND, 0): 2.0, (THIRD, 0): 1.0, (THIRD, 1): -50.0}
    cost = {(FIRST, 0): 0.3, (SECOND, 0): 0.2, (THIRD, 0): 0.1}
    scores = replace(SCORES, bias=at_places(bias), importance=at_places(cost, others=9.0), signed=True)
    for count, taken in enumerate(([(FIRST, 0)], [(FIRST, 0), (SECOND, 0)], list(cost)), start=1):
        assert units_of(decide("pareto", f"{count}n", scores)) == set(taken)


def test_a_front_goes_before_what_lies_behind_it() -> None:
    """The second neuron is more biased than the third, and dearer and less biased than the first."""
    bias = {(FIRST, 0): 3.0, (SECOND, 0): 2.9, (THIRD, 0): 0.001}
    cost = {(FIRST, 0): 0.3, (SECOND, 0): 0.4, (THIRD, 0): 0.1}
    scores = replace(SCORES, bias=at_places(bias), importance=at_places(cost, others=9.0))
    assert units_of(decide("pareto", "2n", scores)) == {(FIRST, 0), (THIRD, 0)}
    equal = replace(scores, importance=at_places({}, others=1.0))  # as dear: more of one is more
    assert units_of(decide("pareto", "2n", equal)) == {(FIRST, 0), (SECOND, 0)}


# -- greedy ------------------------------------------------------------------------------------------------------------------


def test_greedy_goes_on_by_chunks_of_a_part_of_what_may_go() -> None:
    """A budget of 9 in 4 steps is chunks of 3; one that costs exactly what is allowed stays."""
    watched = Watched(lambda units: 1 - len(units) / 100, lambda units: len(units) / 64)
    choice = decide("greedy", "9n", probe=watched, steps=4, max_cost=6 / 64)
    assert [len(each) for each in watched.seen] == [0, 3, 6, 9, 9]
    assert units_of(choice) == units_of(decide("protected-global", "6n", protect=0.1))
    assert choice.reason == "stopped at 6 of 9 neurons: no more lower the divergence within the guard's limit"
    rest = Watched(lambda units: 1 - len(units) / 100)
    assert len(units_of(decide("greedy", "10n", probe=rest, steps=4))) == 10
    assert [len(each) for each in rest.seen] == [0, 3, 6, 9, 10]  # the last chunk is what the budget leaves
    flat = decide("greedy", "9n", probe=Watched(lambda units: 0.25), steps=4)
    assert flat.reason == "no chunk of 3 neurons lowers the divergence on select (0.25) within the guard's limit"
    none = decide("greedy", "9n", replace(SCORES, bias=at_places({})), probe=watched)
    assert none.reason == "the budget 9n and the protected share leave no neuron with a bias above 0"


# -- allocations, random -----------------------------------------------------------------------------------------------------


def test_outliers_are_compared_among_layers_also_where_every_layer_has_some() -> None:
    def at(name: str) -> Any:
        out = torch.ones(48, 32)
        out[: 1 + NAMES.index(name)] = 1000.0
        sums = {"input-squares.neuron": torch.ones(1, 48, dtype=torch.float64)}
        return SimpleNamespace(weights={"out": out}, sums=sums)

    found = decide("outlier-weighted", "30n", at=at, spread=0.5)
    assert [len(found.units[name]) for name in NAMES] == [15, 10, 5]


def test_what_stands_behind_the_end_of_a_document_is_no_input() -> None:
    from fairprune_allocations import InputSquares

    mask = torch.tensor([[[True, True, False]], [[True, False, False]]])
    acts = {"neuron": torch.full((2, 1, 3, 1), 3.0), "mlp_input": torch.full((2, 1, 3, 2), 2.0)}
    found = InputSquares().summands(SimpleNamespace(mask=mask, acts=acts))  # type: ignore[arg-type]
    assert found["neuron"].tolist() == [[[18.0]], [[9.0]]]
    assert found["mlp_input"].tolist() == [[[8.0, 8.0]], [[4.0, 4.0]]]


def test_two_stage_protects_at_least_one_neuron_of_a_site() -> None:
    dear = replace(
        SCORES, bias=at_places({(name, 5): 9.0 for name in NAMES}, others=1.0), importance=at_places({(SECOND, 5): 1.0})
    )
    assert units_of(decide("two-stage", "2n", dear, gamma=1e-6)) >= {(THIRD, 5)}
    assert (SECOND, 5) not in units_of(decide("two-stage", "9n", dear, gamma=1e-6))


def test_random_draws_like_the_most_biased_where_it_is_matched() -> None:
    """In each site two neurons have a norm of their own, and one of them is biased: the other is drawn."""
    bias = at_places({(name, 3): 1.0 for name in NAMES})

    def at(name: str) -> Any:
        squares = torch.full((1, 48), 4.0, dtype=torch.float64)
        squares[0, [3, 11]] = 1e6
        squares[0, 20:] = 1e-6
        return SimpleNamespace(sums={"square-sum.squares": squares})

    drawn = units_of(decide("random", "3n", replace(SCORES, bias=bias), matched=True, at=at))
    assert {name for name, _ in drawn} == set(NAMES)
    assert all(unit != 3 and (unit == 11 or unit < 20) for _, unit in drawn)


def test_random_imitates_those_alone_that_the_highest_bias_would_give() -> None:
    """One biased neuron of each site, whatever the budget; a second one is protected, and of another norm."""
    bias, dear = at_places({(name, 3): 1.0 for name in NAMES}), at_places({(name, 20): 1.0 for name in NAMES})
    for name in NAMES:
        bias[name][20] = 2.0

    def at(name: str) -> Any:
        return SimpleNamespace(
            sums={"square-sum.squares": torch.cat([torch.ones(1, 20), torch.full((1, 28), 1e9)], 1).double()}
        )

    scores = replace(SCORES, bias=bias, importance=dear)
    drawn = units_of(decide("random", "9n", scores, matched=True, protect=3 / 144, at=at))
    assert sorted(name for name, _ in drawn) == NAMES
    assert all(unit < 20 for _, unit in drawn)


@pytest.mark.parametrize("protect", [1.0, -0.1])
def test_random_cannot_protect_all(protect: float) -> None:
    with pytest.raises(Exception, match=r"The 'protect' must be in \[0, 1\)"):
        discovery.build("policy", "random", {"protect": protect})


def test_random_says_why_it_draws_nothing() -> None:
    protected = replace(Budget.parse("3n"), protected_layers=frozenset(range(3)))
    assert decide("random", protected).reason == "all layers are protected"


def test_outlier_weighted_is_its_formula() -> None:
    """Shares of |weight| x |input|_2 above m times their mean, in numpy, of weights and inputs of any size; one block has no gate, and
    of one the inputs are not seen."""
    roles = dict(zip(NAMES, (("out", "gate", "up"), ("out", "up"), ("out",)), strict=True))
    rng = np.random.default_rng(4)
    shapes = {"out": (48, 32), "gate": (48, 32), "up": (48, 32), "neuron": (1, 48), "mlp_input": (1, 32)}
    drawn = {
        name: {part: rng.lognormal(0, 1 + number / 4, shape) for part, shape in shapes.items()}
        for number, name in enumerate(NAMES)
    }

    def at(name: str) -> Any:
        values = {part: torch.from_numpy(each) for part, each in drawn[name].items()}
        return SimpleNamespace(
            weights={role: -values[role] for role in roles[name]},
            sums={f"input-squares.{tap}": values[tap] for tap in ("neuron", "mlp_input")[: len(roles[name])]},
        )

    rates = []
    for name in NAMES:
        of = drawn[name]
        products = [of["out"] * np.sqrt(of["neuron"]).T, *(of[role] * np.sqrt(of["mlp_input"]) for role in roles[name][1:])]
        every = np.concatenate([each.ravel() for each in products])
        rates.append((every > 3 * every.mean()).mean())
    share = 1 + 0.4 - 2 * 0.4 * (np.array(rates) - min(rates)) / (max(rates) - min(rates))
    exact = 60 * share / share.sum()
    counts = np.floor(exact).astype(int)
    for layer in np.argsort(counts - exact, kind="stable")[: 60 - counts.sum()]:
        counts[layer] += 1
    found = decide("outlier-weighted", "60n", at=at, m=3.0, spread=0.4)
    assert [len(found.units[name]) for name in NAMES] == counts.tolist()
    assert len(set(counts.tolist())) == 3


# -- protected-global --------------------------------------------------------------------------------------------------------


def test_an_exchange_wants_costs_that_are_none_of_them_negative() -> None:
    below = replace(SCORES, importance=at_places({(THIRD, 47): -1e-9}, others=1.0))
    with pytest.raises(ValueError, match="'exchange' needs an importance score that is never negative"):
        decide("protected-global", "3n", below, exchange=1.0)
    assert len(units_of(decide("protected-global", "3n", below, exchange=0.0))) == 3
    free = replace(SCORES, importance=at_places({(FIRST, 0): 5.0}))
    dearest = {(FIRST, 0)}  # all others cost nothing, and go before it
    assert not units_of(decide("protected-global", "20n", free, exchange=2.0, protect=0.0)) & dearest


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"exchange": 0.0}, True),
        ({"exchange": 2.0}, True),
        ({"exchange": 2.1}, False),
        ({"exchange": -0.1}, False),
        ({"protect": 0.0}, True),
        ({"protect": 1.0}, False),
        ({"protect": -0.1}, False),
        ({"margin": 0.0}, True),
        ({"margin": -0.1}, False),
    ],
)
def test_the_limits_of_protected_global(options: dict[str, float], accepted: bool) -> None:
    if accepted:
        discovery.build("policy", "protected-global", options)
        return
    with pytest.raises(Exception, match=f"The '{next(iter(options))}' must"):
        discovery.build("policy", "protected-global", options)


def test_protected_global_says_why_it_chooses_nothing() -> None:
    none = replace(SCORES, bias=at_places({}))
    said = decide("protected-global", "3n", none).reason
    assert said == "the budget 3n and what is protected leave no neuron with a bias above 0"


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("outlier-weighted", {"m": 0.5}),
        ("outlier-weighted", {"spread": 0.0}),
        ("two-stage", {"gamma": 0.01}),
        ("knapsack", {"cost": 1.0}),
        ("category-intersection", {"share": 1.0}),
        ("stable", {"frequency": 1.0, "replicates": 2}),
        ("annealing", {"steps": 1, "pool": 1.0, "weight": 0.0, "heat": 0.0}),
        ("gates", {"cap": 1.0, "cost": 1.0}),
        ("greedy", {"protect": 0.0, "steps": 1, "patience": 1}),
        ("set-difference", {"biased": 0.0, "useful": 0.0}),
    ],
)
def test_options_at_the_ends_of_what_is_allowed(policy: str, options: dict[str, float]) -> None:
    made: Any = discovery.build("policy", policy, options)
    assert {name: getattr(made, name) for name in options} == options
