"""Trimming a choice to a budget against a plain loop; what a policy may return; the search for a factor."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.api.interfaces import PolicyContext, SelectionPolicy
from fairprune_framework.api.types import Budget, Choice, Measurement, Plan, Scores, Site
from fairprune_framework.errors import ContractViolation, FairpruneError, UserError
from fairprune_framework.selection.planning import (
    FACTORS,
    best_factor,
    check_choice,
    make_plan,
    no_replicates,
    policy_context,
    trim,
)

SIZES = {"layers.0.a": (0, 6), "layers.0.b": (0, 4), "layers.1.a": (1, 8), "layers.2.a": (2, 5)}


def scores(observed: Any = None, signed: bool = False, bias: Any = None) -> Scores:
    sites = {
        name: Site(name=name, layer=layer, units=units, slices=(), config_fields={}, width_group="w", taps=frozenset())
        for name, (layer, units) in SIZES.items()
    }
    ones = {name: torch.ones(site.units, dtype=torch.float64) for name, site in sites.items()}
    seen = {name: torch.ones(site.units, dtype=torch.bool) for name, site in sites.items()}
    return Scores(
        sites=sites,
        bias={**ones, **(bias or {})},
        importance=ones,
        by_category={},
        observed={**seen, **(observed or {})},
        signed=signed,
    )


def everything(order: bool = True) -> Choice:
    """All units, of which those with a higher index, and then those of a later site, are less removable."""
    units = {name: torch.arange(count) for name, (_, count) in SIZES.items()}
    values = {name: -chosen.double() for name, chosen in units.items()}
    return Choice(units=units, order=values if order else {})


def expected(choice: Choice, given: Scores, budget: Budget) -> dict[str, list[int]]:
    """Take units one by one, most removable first, as long as rules allow: the core's contract in the plainest words."""
    total = sum(units for _, units in SIZES.values())
    layers: dict[int, int] = {}
    for layer, units in SIZES.values():
        layers[layer] = layers.get(layer, 0) + units
    most = {"fraction": math.floor(budget.amount * total), "total": budget.amount, "per-layer": budget.amount * len(layers)}
    room = {layer: math.floor(budget.max_layer_share * size) for layer, size in layers.items()}
    if budget.unit == "per-layer":
        room = {layer: min(size, int(budget.amount)) for layer, size in room.items()}
    ranked = sorted(
        (-value, place, rank, name, unit)
        for place, name in enumerate(sorted(choice.units, key=lambda name: SIZES[name][0]))
        for rank, (unit, value) in enumerate(zip(choice.units[name].tolist(), choice.order[name].tolist(), strict=True))
    )
    left = {name: units - 1 for name, (_, units) in SIZES.items()}
    taken: dict[str, list[int]] = {}
    for *_, name, unit in ranked:
        layer = SIZES[name][0]
        if layer in budget.protected_layers or not given.observed[name][unit] or room[layer] == 0 or left[name] == 0:
            continue
        room[layer] -= 1
        left[name] -= 1
        taken.setdefault(name, []).append(unit)
    kept: dict[str, list[int]] = {}
    count = 0
    for *_, name, unit in ranked:
        if unit in taken.get(name, []) and count < most[budget.unit]:
            kept.setdefault(name, []).append(unit)
            count += 1
    return kept


BUDGETS = st.builds(
    Budget,
    amount=st.integers(1, 25),
    unit=st.sampled_from(["total", "per-layer"]),
    max_layer_share=st.sampled_from([1.0, 0.5, 0.25]),
    protected_layers=st.frozensets(st.integers(0, 2), max_size=2),
) | st.builds(Budget, amount=st.sampled_from([0.01, 0.1, 0.3, 0.9]), max_layer_share=st.sampled_from([1.0, 0.4]))


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    units, order = {}, {}
    for name, (_, count) in SIZES.items():
        chosen = draw(st.lists(st.integers(0, count - 1), unique=True))
        values = sorted((draw(st.integers(0, 4)) for _ in chosen), reverse=True)
        units[name] = torch.tensor(chosen, dtype=torch.long)
        order[name] = torch.tensor(values, dtype=torch.float64)
    return Choice(units=units, order=order)


@given(choices(), BUDGETS, st.data())
@settings(max_examples=200, deadline=None)
def test_trimming_is_taking_one_by_one(choice: Choice, budget: Budget, data: st.DataObject) -> None:
    given_ = scores({"layers.1.a": torch.tensor(data.draw(st.lists(st.booleans(), min_size=8, max_size=8)))})
    kept, left = trim(choice, given_, budget)
    assert {name: units.tolist() for name, units in kept.items()} == expected(choice, given_, budget)
    chosen = sum(map(len, choice.units.values()))
    assert sum(left.values()) + sum(map(len, kept.values())) == chosen


def test_each_reason_is_counted() -> None:
    observed = torch.tensor([True] * 6 + [False] * 2)
    budget = Budget(amount=9, unit="total", max_layer_share=0.6, protected_layers=frozenset({2}))
    kept, left = trim(everything(), scores({"layers.1.a": observed}), budget)
    assert left == {
        "in_protected_layers": 5,
        "not_observed": 2,
        "last_unit_of_site": 2,  # of a and b of layer 0
        "beyond_layer_limit": (5 + 3 - 6) + (6 - 4),
        "beyond_budget": 1,
    }
    assert sum(map(len, kept.values())) == 9


def test_signed_scores_go_above_zero_alone() -> None:
    bias = torch.tensor([1.0, -1.0, 0.0, 2.0, -3.0, 4.0], dtype=torch.float64)
    choice = Choice(units={"layers.0.a": torch.arange(6)})
    for signed, units in ((True, [0, 3, 5]), (False, [0, 1, 2, 3, 4])):
        kept, _ = trim(choice, scores(signed=signed, bias={"layers.0.a": bias}), Budget(amount=20, unit="total"))
        assert kept["layers.0.a"].tolist() == units


@pytest.mark.parametrize(("most", "kept"), [(9, [3, 1, 3, 2]), (1, [0, 0, 1, 0]), (18, [5, 3, 6, 4])])
def test_without_an_order_each_site_keeps_its_share_and_nothing_of_the_budget_is_lost(most: int, kept: list[int]) -> None:
    found, _ = trim(everything(order=False), scores(), Budget(amount=most, unit="total"))  # of 5, 3, 7 and 4: one stays of each
    assert {name: units.tolist() for name, units in found.items()} == {
        name: list(range(count)) for name, count in zip(SIZES, kept, strict=True) if count
    }


def test_without_an_order_a_layer_of_many_sites_gives_what_it_may() -> None:
    found, _ = trim(everything(order=False), scores(), Budget(amount=1, unit="per-layer"))
    layers = [SIZES[name][0] for name, units in found.items() for _ in units]
    assert sorted(layers) == sorted({layer for layer, _ in SIZES.values()})


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(units={"x": torch.tensor([0])}), "chose units of 'x', which is no site"),
        (Choice(units={"layers.0.a": torch.tensor([0.0])}), "must be (n,) integers. Got (1,) torch.float32"),
        (Choice(units={"layers.0.a": torch.tensor([[0]])}), "must be (n,) integers. Got (1, 1)"),
        (Choice(units={"layers.0.a": torch.tensor([0, 6])}), "outside 0..5"),
        (Choice(units={"layers.0.a": torch.tensor([-1])}), "outside 0..5"),
        (Choice(units={"layers.0.a": torch.tensor([2, 2])}), "a unit of layers.0.a twice"),
        (
            Choice(units={"layers.0.a": torch.tensor([2])}, order={"layers.0.a": torch.zeros(2)}),
            "the order of layers.0.a has another length",
        ),
    ],
)
def test_choices_that_break_the_contract(choice: Choice, words: str) -> None:
    check_choice(everything(), scores(), "p")
    with pytest.raises(ContractViolation) as caught:
        check_choice(choice, scores(), "x:p")
    assert words in str(caught.value)
    assert str(caught.value).startswith("x:p")


# -- plans -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fixed(SelectionPolicy):
    """Returns a choice, or raises."""

    choice: Any

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        if isinstance(self.choice, BaseException):
            raise self.choice
        assert isinstance(self.choice, Choice)
        return self.choice


def plan(choice: Any, budget: str = "3n", given: Scores | None = None, **more: Any) -> Any:
    at = policy_context("scale", 0.05, None, torch.Generator())
    words = {"model": "m", "fingerprint": "f", "operator": "remove", **more}
    return make_plan(given or scores(), Fixed(choice=choice), Budget.parse(budget), at, "x:p", **words)


def test_a_plan_names_sorted_units_and_counts_them() -> None:
    found = plan(Choice(units={"layers.1.a": torch.tensor([5, 0]), "layers.0.b": torch.tensor([2])}))
    assert found.sites == {"layers.0.b": (2,), "layers.1.a": (0, 5)}
    assert found.achieved == {"units": 3, "fraction": 3 / 23, "per_layer": {"0": 1, "1": 2}}
    assert found.requested == {"budget": "3n", "units": 3}
    assert (found.abstained, found.reason) == (False, None)


def test_a_plan_without_units_says_why() -> None:
    assert plan(Choice(units={})).reason == "x:p chose no neuron"
    assert plan(Choice(units={}, reason="none was safe")).reason == "none was safe"
    none_left = plan(everything(), "1/layer", factor=None)
    assert not none_left.abstained
    protected = make_plan(
        scores(),
        Fixed(choice=Choice(units={"layers.1.a": torch.tensor([1, 2])})),
        Budget(amount=2, unit="total", protected_layers=frozenset({1})),
        policy_context("remove", 0.05, None, torch.Generator()),
        "x:p",
        model="m",
        fingerprint="f",
        operator="remove",
    )
    assert protected.abstained
    assert protected.reason == "of 2 neurons that x:p chose, none may go: in_protected_layers 2"


def test_a_policy_that_raises_is_named_and_its_error_chained() -> None:
    with pytest.raises(FairpruneError, match="x:p raised ZeroDivisionError: by nought") as caught:
        plan(ZeroDivisionError("by nought"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_policy_does_not_end_the_command() -> None:
    with pytest.raises(FairpruneError, match="x:p raised SystemExit: 0"):
        plan(SystemExit(0))


def test_a_factor_of_the_policy_goes_before_the_users() -> None:
    units = {"layers.0.a": torch.tensor([1])}
    assert plan(Choice(units=units, factor=0.2), operator="scale", factor=0.7).factor == 0.2
    assert plan(Choice(units=units), operator="scale", factor=0.7).factor == 0.7
    with pytest.raises(ContractViolation, match=r"chose the factor 0\.2, but the operator 'zero' does not scale"):
        plan(Choice(units=units, factor=0.2), operator="zero")


# -- the search for a factor -------------------------------------------------------------------------------------------------


def probe(measured: dict[float, tuple[float, float]]) -> Any:
    """factor -> (divergence, cost); a choice without units is the model as it is."""

    def measure(choice: Choice) -> Measurement:
        divergence, cost = measured[choice.factor] if choice.units else (1.0, 0.0)  # type: ignore[index]
        return Measurement(divergence=divergence, cost=cost, retention=1 / (1 + cost))

    return measure


def test_the_lowest_divergence_that_is_affordable() -> None:
    units = {"layers.0.a": torch.tensor([1])}
    measured = dict.fromkeys(FACTORS, (0.9, 0.0)) | {0.0: (0.1, 0.5), 0.25: (0.2, 0.05), 2.0: (0.2, 0.01)}
    factor, seen = best_factor(units, probe(measured), 0.05)
    assert factor == 0.25  # as far down as 2.0, and nearer to 1
    assert seen["0"] == {"divergence": 0.1, "cost": 0.5}
    assert list(seen) == ["0", "0.25", "0.5", "0.75", "1.25", "1.5", "2"]  # as docs/method/scale.md has them
    assert best_factor(units, probe(measured | {1.5: (0.05, 0.0), 0.0: (0.05, 0.0)}), 0.05)[0] == 1.5  # nearer to 1 than 0 is
    assert best_factor(units, probe(measured), 0.5)[0] == 0.0


def test_no_factor_where_none_lowers_the_divergence() -> None:
    flat = Measurement(divergence=1.0, cost=0.0, retention=1.0)
    assert best_factor({}, lambda choice: flat, 0.05)[0] is None


def test_a_plan_whose_factor_cannot_be_found_abstains() -> None:
    units = {"layers.0.a": torch.tensor([1])}
    flat = dict.fromkeys(FACTORS, (1.0, 0.0))
    found = plan(Choice(units=units), operator="scale", search=probe(flat))
    assert found.abstained
    assert found.sites == {}
    assert "no factor that --max-perplexity-increase allows" in str(found.reason)
    better = plan(Choice(units=units), operator="scale", search=probe(flat | {0.5: (0.5, 0.0)}))
    assert (better.factor, better.count) == (0.5, 1)
    assert better.achieved["factors"]["0.5"] == {"divergence": 0.5, "cost": 0.0}


def test_a_budget_below_one_neuron_is_said_whatever_the_policy_says() -> None:
    found = plan(Choice(units={}, reason="no neuron has a bias above 0"), "0.0043")
    assert (found.abstained, found.reason) == (True, "the budget 0.0043 of 23 neurons is less than one neuron")


def test_factors_go_with_the_units_that_are_kept() -> None:
    units, factors = {"layers.1.a": torch.tensor([5, 0, 3]), "layers.0.b": torch.tensor([2])}, [0.5, 2.0, 0.1]
    choice = Choice(
        units=units,
        order={"layers.1.a": torch.tensor([9.0, 8.0, 1.0]), "layers.0.b": torch.tensor([7.0])},
        factors={"layers.1.a": torch.tensor(factors, dtype=torch.float64), "layers.0.b": torch.tensor([1.0])},
    )
    found = plan(choice, operator="scale", factor=0.7)
    assert found.sites == {"layers.0.b": (2,), "layers.1.a": (0, 5)}  # unit 3 of layer 1 is beyond the budget
    assert found.factors == {"layers.0.b": (1.0,), "layers.1.a": (2.0, 0.5)}
    assert found.factor is None
    assert found.scaling == found.factors
    assert Plan.from_json(json.loads(json.dumps(found.to_json()))) == found
    for wrong in ({"factors": {**found.to_json()["factors"], "layers.0.b": []}}, {"factor": 0.5}, {"operator": "zero"}):
        with pytest.raises(UserError, match="factors"):
            Plan.from_json({**found.to_json(), **wrong})
    with pytest.raises(UserError, match=r"must be in \[0, 10\]. Got 11 instead"):
        Plan.from_json({**found.to_json(), "factors": {"layers.0.b": [1], "layers.1.a": [11, 0]}})


TWO = {"layers.0.b": torch.tensor([2, 1])}


@pytest.mark.parametrize(
    ("more", "operator", "words"),
    [
        ({}, "zero", "chose factors for its units, but the operator 'zero' does not scale"),
        ({"factor": 0.5}, "scale", "no other factor beside them"),
        ({"factors": {"layers.0.b": torch.tensor([0.5, 0.5])}}, "scale", "one number for each unit"),
        ({"factors": {"layers.1.a": torch.tensor([0.5])}}, "scale", "one number for each unit"),
        ({"factors": {"layers.0.b": torch.tensor([-1.0])}}, "scale", r"factors of layers\.0\.b must be in \[0, 10\]"),
        ({"factors": {"layers.0.b": torch.tensor([torch.nan])}}, "scale", r"must be in \[0, 10\]"),
        ({"units": TWO, "factors": {"layers.0.b": torch.tensor([0.5, 11.0])}}, "scale", r"must be in \[0, 10\]"),
    ],
)
def test_factors_that_break_the_contract(more: dict[str, Any], operator: str, words: str) -> None:
    choice = Choice(**{"units": {"layers.0.b": torch.tensor([2])}, "factors": {"layers.0.b": torch.tensor([0.5])}, **more})
    with pytest.raises(ContractViolation, match=words):
        plan(choice, operator=operator)


def test_categories_go_with_the_units_that_are_kept() -> None:
    choice = Choice(
        units={"layers.1.a": torch.tensor([5, 0, 3]), "layers.0.b": torch.tensor([2])},
        order={"layers.1.a": torch.tensor([4.0, 3.0, 1.0]), "layers.0.b": torch.tensor([2.0])},
        categories={"layers.1.a": torch.tensor([1, 2, 3])},
    )
    found = plan(choice)
    assert found.sites == {"layers.0.b": (2,), "layers.1.a": (0, 5)}
    assert found.categories == {"layers.1.a": (2, 1)}
    assert Plan.from_json(found.to_json()).categories == found.categories


def test_a_unit_belongs_to_the_category_in_which_its_bias_ranks_highest() -> None:
    def among(first: list[float]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(first if name == "layers.1.a" else [0.0] * units) for name, (_, units) in SIZES.items()}

    by_category = {
        "b": among([9, 1, 2, 3, 4, 5, 6, 7]),  # above 22, 15, 16, 17, ... units
        "a": among([0.01, 0.1, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]),  # above 15, 22, 16, 17, ...
    }
    choice = Choice(units={"layers.1.a": torch.tensor([3, 1, 0])})
    found = plan(choice, given=replace(scores(), by_category=by_category))
    assert found.category_names == ("a", "b")
    assert found.categories == {"layers.1.a": (0b10, 0b01, 0b11)}
    assert Plan.from_json(found.to_json()) == found


@pytest.mark.parametrize("bits", [torch.tensor([1, 2]), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1, -1, 0])])
def test_categories_that_are_no_bit_masks(bits: torch.Tensor) -> None:
    with pytest.raises(ContractViolation, match="bit mask"):
        plan(Choice(units={"layers.1.a": torch.tensor([5, 0, 3])}, categories={"layers.1.a": bits}))


def test_ranks_of_categories_are_among_the_units_that_each_of_them_saw() -> None:
    """Above two of four units is further up than above 10 of 23, and less far than above 13."""
    few = {"layers.0.b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    for below, bits in ((10, 0b10), (13, 0b01)):
        every = {name: torch.full((units,), 9.0) for name, (_, units) in SIZES.items()}
        every["layers.0.b"][2] = 5.0
        for name in sorted(SIZES):
            for unit in range(SIZES[name][1]):
                if below and (name, unit) != ("layers.0.b", 2):
                    every[name][unit], below = 1.0, below - 1
        found = plan(
            Choice(units={"layers.0.b": torch.tensor([2])}), given=replace(scores(), by_category={"many": every, "one": few})
        )
        assert found.categories == {"layers.0.b": (bits,)}


def test_means_are_those_of_the_units_that_go_in_the_order_of_the_plan() -> None:
    """Made only where something goes, and for the operator that holds units at them."""
    values = {name: torch.arange(2.0 * units).reshape(units, 2) for name, (_, units) in SIZES.items()}
    made: list[int] = []

    def means() -> Any:
        made.append(1)
        return values

    choice = Choice(units={"layers.1.a": torch.tensor([5, 0]), "layers.0.b": torch.tensor([2])})
    found = plan(choice, operator="mean", means=means)
    assert found.means == {"layers.0.b": ((4.0, 5.0),), "layers.1.a": ((0.0, 1.0), (10.0, 11.0))}
    assert plan(choice, operator="zero", means=means).means == plan(Choice(units={}), operator="mean", means=means).means == {}
    assert made == [1]


def test_factors_at_the_ends_of_what_is_allowed() -> None:
    units = torch.tensor([1, 2, 3])
    factors = torch.tensor([0.0, 10.0, 1.0])
    found = plan(Choice(units={"layers.0.b": units}, factors={"layers.0.b": factors}), operator="scale")
    assert found.factors == {"layers.0.b": (0.0, 10.0, 1.0)}


def test_units_with_a_factor_of_their_own_may_have_a_bias_below_zero() -> None:
    bias = {"layers.0.b": torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)}
    units = {"layers.0.b": torch.tensor([1, 2])}
    given = scores(signed=True, bias=bias)
    turned = plan(Choice(units=units, factors={"layers.0.b": torch.tensor([1.5, 0.5])}), given=given, operator="scale")
    assert turned.factors == {"layers.0.b": (1.5, 0.5)}
    whole = plan(Choice(units=units), given=given, operator="zero")
    assert whole.sites == {"layers.0.b": (2,)}
    assert whole.achieved["not_observed"] == 1


@dataclass(frozen=True, kw_only=True)
class Blind(Fixed):
    """Does not look at scores."""

    blind: ClassVar[bool] = True

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        assert not scores.signed
        return super().select(scores, budget, context)


def test_a_blind_policy_takes_units_of_any_bias() -> None:
    below = scores(signed=True, bias={name: -torch.ones(units).double() for name, (_, units) in SIZES.items()})
    choice = Choice(units={"layers.1.a": torch.tensor([5, 0])})
    words = {"model": "m", "fingerprint": "f", "operator": "zero"}
    at = policy_context("zero", 0.05, None, torch.Generator())
    found = make_plan(below, Blind(choice=choice), Budget.parse("3n"), at, "x:p", **words)  # type: ignore[arg-type]
    assert found.sites == {"layers.1.a": (0, 5)}
    assert plan(choice, given=below).abstained


def test_every_reason_is_named_where_nothing_is_left() -> None:
    seen = {"layers.1.a": torch.zeros(8, dtype=torch.bool)}
    choice = Choice(units={"layers.1.a": torch.tensor([1, 2]), "layers.2.a": torch.tensor([0, 1, 3])})
    at = policy_context("remove", 0.05, None, torch.Generator())
    budget = Budget(amount=2, unit="total", protected_layers=frozenset({2}))
    words = {"model": "m", "fingerprint": "f", "operator": "remove"}
    found = make_plan(scores(seen), Fixed(choice=choice), budget, at, "x:p", **words)  # type: ignore[arg-type]
    assert found.reason == "of 5 neurons that x:p chose, none may go: not_observed 2, in_protected_layers 3"
    assert found.achieved == {"units": 0, "fraction": 0.0, "per_layer": {}, "not_observed": 2, "in_protected_layers": 3}
    assert found.category_names == ()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"units": [("layers.0.a", torch.tensor([1]))]}, "the units of a choice are a mapping from sites. Got list instead."),
        ({"order": [1]}, "the order of a choice are a mapping from sites. Got list instead."),
        ({"units": {"layers.0.a": [1]}}, "the units of layers.0.a must be a tensor. Got list instead."),
        ({"order": {"x": torch.zeros(1)}}, "chose order of 'x', which is no site"),
        ({"categories": {"x": torch.zeros(1)}}, "chose categories of 'x', which is no site"),
        ({"categories": {"layers.0.a": [1]}}, "the categories of layers.0.a must be a tensor"),
    ],
)
def test_parts_of_a_choice_that_are_none(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        plan(Choice(**{"units": {}, **parts}))
    assert words in str(caught.value)


def test_the_first_and_the_last_unit_and_none_may_be_chosen() -> None:
    none = torch.zeros(0, dtype=torch.long)
    found = plan(Choice(units={"layers.0.a": torch.tensor([0, 5]), "layers.1.a": none}))
    assert found.sites == {"layers.0.a": (0, 5)}
    assert found.achieved["per_layer"] == {"0": 2}
    assert plan(Choice(units={"layers.0.a": torch.tensor([0])}, categories={"layers.0.a": torch.tensor([0])})).categories == {
        "layers.0.a": (0,)
    }


def test_a_factor_is_searched_only_where_it_is_needed() -> None:
    def never(choice: Choice) -> Measurement:
        raise AssertionError("it was measured")

    units = {"layers.0.a": torch.tensor([1])}
    assert plan(Choice(units=units), operator="scale", factor=0.5, search=never).factor == 0.5
    assert plan(Choice(units={}), operator="scale", search=never).factor is None
    assert plan(Choice(units=units), operator="zero", search=never).factor is None


def test_a_context_that_says_nothing_has_no_replicates_and_no_probe() -> None:
    at = policy_context("zero", 0.05, None, torch.Generator())
    assert (at.operator, at.max_cost, at.probe) == ("zero", 0.05, None)
    with pytest.raises(FairpruneError, match="did not declare replicates"):
        list(at.replicates())
    assert at.replicates is no_replicates
