"""Policies against plain loops, exhaustive search and counting."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from fairprune_framework import discovery
from fairprune_framework.api import Choice, Measurement, Scores
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.policy_contract import made_up
from fairprune_framework.testing.tiny import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from deciding import decider

ARCHITECTURE = recognise(tiny_model("llama", layers=3))
RAW = made_up(ARCHITECTURE)
SCORES = replace(RAW, bias={name: bias * (k + 1) for k, (name, bias) in enumerate(RAW.bias.items())})
NAMES = sorted(SCORES.sites)
decide = decider(SCORES)
Unit = tuple[str, int]


def choose(policy: str, budget: str, scores: Scores = SCORES, **words: Any) -> list[Unit]:
    """(site, unit) of what a policy takes, most removable first of each site; words as for `decide`."""
    choice = decide(policy, budget, scores, **words)
    return [(name, int(unit)) for name, units in choice.units.items() for unit in units]


def every(scores: Scores = SCORES) -> list[Unit]:
    return [(name, unit) for name in NAMES for unit in range(scores.sites[name].units)]


def bias(unit: Unit, scores: Scores = SCORES) -> float:
    return float(scores.bias[unit[0]][unit[1]])


def importance(unit: Unit) -> float:
    return float(SCORES.importance[unit[0]][unit[1]])


def top(units: list[Unit], count: int, key: Any = bias) -> set[Unit]:
    return set(sorted(units, key=key, reverse=True)[:count])


def per_layer(units: Any) -> list[int]:
    found = Counter(name for name, _ in units)
    return [found[name] for name in NAMES]


def test_global_takes_the_highest() -> None:
    assert set(choose("global", "20n")) == top(every(), 20)


def test_standardised_global_takes_the_highest_z() -> None:
    z = {
        name: (SCORES.bias[name].numpy() - SCORES.bias[name].numpy().mean()) / SCORES.bias[name].numpy().std(ddof=1)
        for name in NAMES
    }
    found = choose("standardised-global", "20n")
    assert set(found) == top(every(), 20, lambda unit: z[unit[0]][unit[1]])
    assert min(per_layer(found)) > 0 == min(per_layer(choose("global", "20n")))


def test_two_stage_protects_a_share_of_each_site() -> None:
    shielded = {unit for name in NAMES for unit in top([at for at in every() if at[0] == name], int(0.5 * 48), importance)}
    assert set(choose("two-stage", "20n", gamma=0.5)) == top([at for at in every() if at not in shielded], 20)


def test_bias_proportional_divides_by_bias() -> None:
    sums = np.array([float(SCORES.bias[name].sum()) for name in NAMES])
    exact = 30 * sums / sums.sum()
    counts = np.floor(exact).astype(int)
    for layer in np.argsort(counts - exact, kind="stable")[: 30 - counts.sum()]:
        counts[layer] += 1
    found = choose("bias-proportional", "30n")
    assert per_layer(found) == counts.tolist()
    for name, count in zip(NAMES, counts, strict=True):
        assert {unit for unit in found if unit[0] == name} == top([at for at in every() if at[0] == name], count)


def test_what_a_layer_has_no_room_for_goes_to_the_others() -> None:
    steep = replace(SCORES, bias={name: SCORES.bias[name] * 100.0**k for k, name in enumerate(NAMES)})
    first, second, third = per_layer(choose("bias-proportional", "100n", steep))
    assert (first + second, third) == (53, 47)  # one unit of a site stays
    assert second == 47


def test_outlier_weighted_spares_layers_with_outliers() -> None:
    class At:
        def __init__(self, name: str) -> None:
            heavy = NAMES.index(name)  # so many rows of the layer are outliers
            out = torch.ones(48, 32)
            out[:heavy] = 1000.0
            self.weights = {"out": out, "gate": torch.ones(48, 32), "up": torch.ones(48, 32)}
            self.sums = {
                "input-squares.neuron": torch.ones(1, 48, dtype=torch.float64),
                "input-squares.mlp_input": torch.ones(1, 32, dtype=torch.float64),
            }

    found = choose("outlier-weighted", "30n", at=At, spread=0.5)
    assert per_layer(found) == [15, 10, 5]  # 1.5, 1 and 0.5 of an equal share
    assert per_layer(choose("outlier-weighted", "30n", at=At, spread=0.0)) == [10, 10, 10]


def test_pareto_takes_fronts() -> None:
    left, expected = every(), []
    while len(expected) < 25:
        front = [
            a
            for a in left
            if not any(
                (bias(b) > bias(a) and importance(b) <= importance(a)) or (bias(b) == bias(a) and importance(b) < importance(a))
                for b in left
            )
        ]
        expected += sorted(front, key=bias, reverse=True)
        left = [at for at in left if at not in front]
    assert set(choose("pareto", "25n")) == set(expected[:25])


@pytest.mark.parametrize(("count", "cost"), [(3, 1.0), (5, 0.01), (5, 0.02), (4, 0.005)])
def test_knapsack_is_the_best_of_all_sets(count: int, cost: float) -> None:
    few = [at for at in every() if at[1] < 4]
    sparse = {name: torch.where(torch.arange(48) < 4, SCORES.bias[name], 0.0) for name in NAMES}
    scores = replace(SCORES, bias=sparse)
    limit = cost * sum(map(importance, every()))
    found = choose("knapsack", f"{count}n", scores, cost=cost)
    best = max(
        sum(map(bias, chosen))
        for size in range(count + 1)
        for chosen in itertools.combinations(few, size)
        if sum(map(importance, chosen)) <= limit
    )
    assert len(found) <= count
    assert sum(map(importance, found)) <= limit + 1e-9
    assert sum(map(bias, found)) == pytest.approx(best, rel=1e-6)


def streams(count: int = 1, **slopes: dict[str, torch.Tensor]) -> Any:
    """`context.at` for mean slopes of so many `controls`, and slopes of `legitimate` and recalled words."""

    def at(name: str) -> Any:
        def of(stream: str) -> Any:
            here = slopes.get(stream)
            if here is None:
                return SimpleNamespace(count=0, sums={})
            sums = {
                "controls": {"control-slopes.product": count * here[name][None]},
                "legitimate": {
                    "legitimate-slopes.moments": torch.stack([here[name], here[name].square(), torch.ones(48).double()])
                },
            }
            return SimpleNamespace(count=count, sums=sums[stream])

        recall = slopes.get("recall")
        return SimpleNamespace(of=of, sums={"recall-slopes.moments": recall[name][None]} if recall else {})

    return at


def drawn(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(48, generator=generator, dtype=torch.float64) for name in NAMES}


def test_knapsack_lowers_no_controls_and_keeps_right_words_and_recall() -> None:
    noise = {"controls": drawn(1), "legitimate": drawn(2), "recall": drawn(3)}
    slopes = {k: {n: SIGNS[k] * (2 * SCORES.bias[n] + noise[k][n]) for n in NAMES} for k in noise}
    found = choose("knapsack", "20n", at=streams(**slopes), cost=1.0, specific=True, legitimate=True, recall=True)
    rows = np.array([[sign * float(slopes[k][u[0]][u[1]]) for u in every()] for k, sign in SIGNS.items()])
    gain = np.array([max(bias(u), 0.0) for u in every()])
    exact = linprog(-gain, A_ub=[*rows, np.ones(len(gain))], b_ub=[0, 0, 0, 20], bounds=(0, 1))
    taken = np.array([u in set(found) for u in every()], dtype=float)
    assert 5 <= len(found) <= 20
    assert gain @ taken >= -exact.fun - 4 * gain.max()  # at most a unit for each of the four limits was a fraction
    assert (rows @ taken <= 4 * np.abs(rows).max(1)).all()
    free = np.array([u in set(choose("knapsack", "20n", cost=1.0)) for u in every()], dtype=float)
    assert ((rows @ free) > 4 * np.abs(rows).max(1)).all()  # without the options none is held


SIGNS = {"controls": 1.0, "legitimate": 1.0, "recall": -1.0}
"""Of the slope that removal may not add up to above 0: removing neurons changes a quantity by -slope."""


def test_knapsack_takes_nothing_where_controls_react_alike() -> None:
    assert choose("knapsack", "20n", at=streams(controls=dict(SCORES.bias)), specific=True) == []
    against = {name: -values for name, values in SCORES.bias.items()}
    assert set(choose("knapsack", "20n", at=streams(controls=against), cost=1.0, specific=True)) == set(
        choose("knapsack", "20n", cost=1.0)
    )


def test_knapsack_lifts_controls_by_a_multiple_of_what_it_takes() -> None:
    controls = drawn(1)
    lifted = choose("knapsack", "20n", at=streams(controls=controls), cost=1.0, specific=True, lift=2.0)
    slope = {unit: float(controls[unit[0]][unit[1]]) for unit in every()}
    gain = np.array([max(bias(unit), 0.0) for unit in every()])
    row = np.array([slope[unit] + 2.0 * bias(unit) for unit in every()])
    exact = linprog(-gain, A_ub=[row, np.ones(len(gain))], b_ub=[0, 20], bounds=(0, 1))
    taken = sum(map(bias, lifted))
    assert taken == pytest.approx(-exact.fun, abs=2 * gain.max())
    assert (
        sum(slope[unit] for unit in lifted) <= -2.0 * taken + 2 * np.abs(row).max()
    )  # removal changes controls by minus the slope
    held = choose("knapsack", "20n", at=streams(controls=controls), cost=1.0, specific=True)
    assert sum(slope[unit] for unit in held) > -2.0 * sum(map(bias, held)) + 2 * np.abs(row).max()


@pytest.mark.parametrize("policy", ["knapsack", "gates"])
def test_a_lift_is_nats_for_a_nat_however_many_controls_there_are(policy: str) -> None:
    """Sums over controls grow with their number, the bias is a mean: each control given 144 times over asks for no other plan."""
    options = {
        "cost": 1.0 if policy == "knapsack" else 0.01,
        "specific": True,
        "lift": 2.0,
        "legitimate": False,
        "recall": False,
    }
    once, often = (decide(policy, "20n", at=streams(count, controls=drawn(1)), **options) for count in (1, 144))
    held = decide(policy, "20n", at=streams(controls=drawn(1)), **{**options, "lift": 0.0})
    assert {name: units.tolist() for name, units in once.units.items()} == {
        n: units.tolist() for n, units in often.units.items()
    }
    for name, factors in once.factors.items():
        torch.testing.assert_close(factors, often.factors[name], rtol=0, atol=1e-9)
    moved = once.factors or once.units
    unlifted = held.factors or held.units
    assert any(moved[n].tolist() != unlifted[n].tolist() for n in moved if n in unlifted) or moved.keys() != unlifted.keys()


@pytest.mark.parametrize("margin", [0.5, 0.0, -0.5])
@pytest.mark.parametrize(("option", "good"), [("spare", -1), ("spare_margin", 1)])
def test_knapsack_and_gates_spare_recall_and_the_margin(option: str, good: int, margin: float) -> None:
    """What supports it is not removed or turned down, what opposes it is not turned up: recall by slopes below 0, the margin of right
    words by slopes above 0."""
    generator = torch.Generator().manual_seed(5)
    documents = {name: torch.randn(6, 48, generator=generator, dtype=torch.float64) for name in NAMES}
    moments = {n: torch.stack([x.sum(0), x.square().sum(0), torch.full((48,), 6.0).double()]) for n, x in documents.items()}
    in_errors = {name: -good * x.mean(0) / (x.std(0, correction=1) / 6**0.5) for name, x in documents.items()}
    signed = replace(SCORES, bias={name: torch.randn(48, generator=generator, dtype=torch.float64) for name in NAMES})

    def at(name: str) -> Any:
        legitimate = SimpleNamespace(count=6, sums={"legitimate-slopes.moments": moments[name]})
        return SimpleNamespace(sums={"recall-slopes.moments": moments[name]}, of={"legitimate": legitimate}.get)

    def moved(policy: str, options: Any) -> list[tuple[float, float]]:
        """Factor and slope in standard errors of each unit that is planned."""
        choice = decide(policy, "60n", signed, at=at, **options)
        factors = choice.factors or {name: torch.zeros(len(units)) for name, units in choice.units.items()}
        return [
            (float(factor), float(in_errors[name][unit]))
            for name, units in choice.units.items()
            for unit, factor in zip(units, factors[name], strict=True)
        ]

    gates = {"specific": False, "legitimate": False, "recall": False}
    for policy, options in (("knapsack", {"cost": 1.0}), ("gates", gates)):
        free, spared = moved(policy, options), moved(policy, {**options, option: margin})
        assert any(errors < -margin for factor, errors in free if factor < 1)
        assert [errors for factor, errors in spared if factor < 1]
        assert not [errors for factor, errors in spared if factor < 1 and errors < -margin]
        assert not [errors for factor, errors in spared if factor > 1 and errors > margin]
    assert [errors for factor, errors in moved("gates", {**gates, option: margin}) if factor > 1]


def test_knapsack_and_gates_spare_the_margin_of_right_words() -> None:
    slopes = drawn(8)
    signed = replace(SCORES, bias=drawn(9))
    at = streams(legitimate=slopes)
    gates = {"specific": False, "legitimate": False, "recall": False}
    free = decide("gates", "60n", signed, at=at, **gates)
    choice = decide("gates", "60n", signed, at=at, spare_margin=0.0, **gates)

    def harmed(choice: Choice) -> int:
        moves = {name: choice.factors[name] - 1 for name in choice.factors}
        return sum(int((moves[name] * slopes[name][choice.units[name]] < 0).sum()) for name in moves)

    assert harmed(free) > 0
    assert harmed(choice) == 0
    assert sum(int((factor > 1).sum()) for factor in choice.factors.values()) > 0
    assert sum(int((factor < 1).sum()) for factor in choice.factors.values()) > 0
    removed = choose("knapsack", "60n", signed, at=at, spare_margin=0.0, cost=1.0)
    assert removed
    assert max(float(slopes[name][unit]) for name, unit in removed) <= 0
    with pytest.raises(ValueError, match="stream 'legitimate'"):
        choose("gates", "60n", signed, at=streams(), spare_margin=0.0, **gates)


@pytest.mark.parametrize("cost", [1e-5, 1e-4])
def test_gates_cost_a_share_of_what_removing_all_neurons_costs(cost: float) -> None:
    signed = replace(SCORES, bias=drawn(9))
    choice = decide("gates", "144n", signed, at=streams(), cost=cost, specific=False, legitimate=False, recall=False)
    spent = sum(
        float((SCORES.importance[name][units] * (choice.factors[name] - 1).square()).sum())
        for name, units in choice.units.items()
    )
    assert spent == pytest.approx(cost * sum(float(values.sum()) for values in SCORES.importance.values()), rel=1e-6)


def test_gates_where_only_one_site_reacts() -> None:
    """A site without a neuron of any bias takes no part, and the others have their gates."""
    one = replace(SCORES, bias={name: values * (name == NAMES[0]) for name, values in drawn(9).items()})
    choice = decide("gates", "40n", one, at=streams(), specific=False, legitimate=False, recall=False)
    assert {name for name, units in choice.units.items() if len(units)} == {NAMES[0]} == set(choice.factors)
    assert len(choice.factors[NAMES[0]]) == 40
    assert float((choice.factors[NAMES[0]] - 1).abs().min()) > 0


def test_a_rounding_error_of_a_score_moves_no_gate_far() -> None:
    """The cost does not hang on which of two neurons, one of them dear, is the better by a hair."""
    bias, cost = drawn(9), {name: values.clone().double() for name, values in SCORES.importance.items()}
    cost[NAMES[0]][1] *= 1e4
    middle = torch.cat(list(cost.values())).median()
    bias[NAMES[0]][0] = 10.0
    bias[NAMES[0]][1] = 10.0 * ((cost[NAMES[0]][1] + middle) / (cost[NAMES[0]][0] + middle)).sqrt()

    def gates(nudge: float) -> torch.Tensor:
        nudged = {name: values.clone() for name, values in bias.items()}
        nudged[NAMES[0]][0] += nudge
        scores = replace(SCORES, bias=nudged, importance=cost)
        choice = decide("gates", "144n", scores, at=streams(), specific=False, legitimate=False, recall=False)
        return torch.cat([choice.factors[name] for name in NAMES])

    first, second = gates(-1e-6), gates(1e-6)
    assert float((first - 1).abs().max()) > 0.01
    torch.testing.assert_close(second, first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["knapsack", "gates"])
@pytest.mark.parametrize("errors", [float("nan"), float("inf")])
def test_standard_errors_are_finite_numbers(policy: str, errors: float) -> None:
    for name in ("spare", "spare_margin"):
        with pytest.raises(ValueError, match=f"The '{name}' must be a finite number of standard errors. Got {errors} instead"):
            decide(policy, "60n", SCORES, at=streams(), **{name: errors})


def test_gates_refuse_an_importance_below_zero_in_any_site() -> None:
    """A cost that is negative anywhere is none, also where all other sites are in order."""
    for name in NAMES:
        cost = {each: values.clone() for each, values in SCORES.importance.items()}
        cost[name][3] = 0.0  # a silent neuron costs nothing
        assert choose(
            "gates", "60n", replace(SCORES, importance=cost), at=streams(), specific=False, legitimate=False, recall=False
        )
        cost[name][3] = -1e-3
        with pytest.raises(ValueError, match="importance score that is never negative"):
            choose(
                "gates", "60n", replace(SCORES, importance=cost), at=streams(), specific=False, legitimate=False, recall=False
            )


def test_the_margin_of_spare_is_a_number() -> None:
    with pytest.raises(ValueError, match="'spare' must be a finite number"):
        choose("gates", "60n", at=None, spare=float("nan"))


def test_knapsack_says_which_contrasts_are_missing() -> None:
    with pytest.raises(ValueError, match="stream 'legitimate'"):
        choose("knapsack", "20n", at=streams(), legitimate=True)


def test_knapsack_holds_what_there_is_where_nothing_is_required() -> None:
    asked = {"specific": True, "legitimate": True, "required": False}
    whole = replace(SCORES, by_category={})
    assert choose("knapsack", "20n", whole, at=streams(), **asked) == choose("knapsack", "20n", whole)
    some = streams(controls=drawn(1))
    assert choose("knapsack", "20n", at=some, **asked) == choose("knapsack", "20n", at=some, specific=True)


def test_category_intersection_is_one() -> None:
    generator = torch.Generator().manual_seed(3)
    categories = {
        category: {name: torch.rand(48, generator=generator, dtype=torch.float64) for name in NAMES} for category in "abc"
    }
    scores = replace(SCORES, by_category=categories, bias={name: sum(categories[c][name] for c in "abc") / 3 for name in NAMES})
    tops = [top(every(), int(0.5 * 144), lambda unit, c=c: float(categories[c][unit[0]][unit[1]])) for c in "abc"]
    both = set.intersection(*tops)
    assert set(choose("category-intersection", "140n", scores, share=0.5)) == both
    assert set(choose("category-intersection", "5n", scores, share=0.5)) == top(list(both), 5, lambda u: bias(u, scores))
    two = {unit for unit in every() if sum(unit in found for found in tops) >= 2}
    assert set(choose("category-intersection", "140n", scores, share=0.5, least=2)) == two > both
    choice = decide("category-intersection", "140n", scores, share=0.5, least=2)
    for name, units in choice.units.items():
        for unit, bits in zip(units.tolist(), choice.categories[name].tolist(), strict=True):
            assert bits == sum(((name, unit) in found) << place for place, found in enumerate(tops))


def test_stable_counts_bootstraps() -> None:
    drawn = [made_up(ARCHITECTURE, seed) for seed in range(4)]
    mixed = [replace(SCORES, bias={n: SCORES.bias[n] + one.bias[n] for n in NAMES}) for one in drawn]

    def replicates() -> Iterator[Scores]:
        yield from mixed

    times = Counter(unit for one in mixed for unit in top(every(), 20, lambda u, one=one: bias(u, one)))
    for frequency, least in ((0.5, 2), (1.0, 4)):
        often = [unit for unit, count in times.items() if count >= least]
        expected = set(sorted(often, key=lambda u: (times[u], bias(u)), reverse=True)[:20])
        found = choose("stable", "20n", resampled=replicates, frequency=frequency, replicates=4)
        assert set(found) == expected
        assert found


class Oracle:
    """Units of even number help, the others hurt; all cost."""

    def __init__(self, cost: float = 0.0, worth: float = 0.01) -> None:
        self.cost, self.worth, self.asked = cost, worth, 0

    def __call__(self, choice: Choice) -> Measurement:
        self.asked += 1
        units = [int(unit) for found in choice.units.values() for unit in found]
        cost = self.cost * len(units)
        value = 1 - sum(self.worth if unit % 2 == 0 else -self.worth for unit in units)
        return Measurement(divergence=value, cost=cost, retention=1 / (1 + cost))


def test_annealing_finds_what_helps() -> None:
    start = top(every(), 6)
    oracle = Oracle()
    found = choose("annealing", "6n", probe=oracle, steps=200, heat=0.0)
    assert oracle.asked == 202
    assert len(found) == 6
    assert all(unit % 2 == 0 for _, unit in found)
    assert not all(unit % 2 == 0 for _, unit in start)
    assert set(found) <= top(every(), 24)  # four times the budget
    again = choose("annealing", "6n", probe=Oracle(), steps=200, heat=0.0)
    assert again == found


def test_annealing_abstains_where_nothing_helps_or_all_costs_too_much() -> None:
    assert choose("annealing", "6n", probe=Oracle(worth=0.0)) == []
    assert choose("annealing", "6n", probe=Oracle(cost=0.01)) == []
    assert choose("annealing", "6n", probe=Oracle(cost=0.008), steps=200) != []


def test_annealing_may_cost_as_much_as_the_guard_allows() -> None:
    """0.0625 for each of 4 neurons is the limit of 0.25 to the bit; no more."""
    assert len(choose("annealing", "4n", probe=Oracle(cost=0.0625), max_cost=0.25, steps=200)) == 4
    assert choose("annealing", "4n", probe=Oracle(cost=0.0625), max_cost=0.2499, steps=200) == []


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("two-stage", {"gamma": 1.0}),
        ("outlier-weighted", {"m": 0.0}),
        ("outlier-weighted", {"spread": 1.0}),
        ("knapsack", {"cost": 0.0}),
        ("knapsack", {"lift": -1.0}),
        ("gates", {"lift": float("inf")}),
        ("category-intersection", {"share": 0.0}),
        ("category-intersection", {"least": -1}),
        ("stable", {"frequency": 0.0}),
        ("stable", {"replicates": 1}),
        ("annealing", {"steps": 0}),
        ("annealing", {"pool": 0.5}),
        ("annealing", {"weight": -1.0}),
    ],
)
def test_options_out_of_range(policy: str, options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=f"The '{next(iter(options))}' must"):
        discovery.build("policy", policy, options)
