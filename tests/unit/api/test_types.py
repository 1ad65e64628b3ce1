"""Budgets and plans: reading, writing and refusing them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.api.types import Budget, Held, Plan, Site
from fairprune_framework.errors import UserError


def site(layer: int, units: int, name: str = "mlp") -> Site:
    return Site(
        name=f"model.layers.{layer}.{name}",
        layer=layer,
        units=units,
        slices=(),
        config_fields={"intermediate_size": 1},
        width_group="w",
        taps=frozenset(),
    )


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("0.002", 0.002, "fraction"),
        (" 1e-3 ", 0.001, "fraction"),
        (0.5, 0.5, "fraction"),
        ("256n", 256, "total"),
        ("16/layer", 16, "per-layer"),
    ],
)
def test_parse(text: str | float, amount: float, unit: str) -> None:
    found = Budget.parse(text)
    assert (found.amount, found.unit) == (amount, unit)


@given(st.floats(min_value=1e-12, max_value=1, exclude_max=True))
def test_fractions_are_written_so_that_they_are_read_as_the_same_number(amount: float) -> None:
    assert Budget.parse(str(Budget(amount=amount))) == Budget(amount=amount)


@given(st.integers(min_value=1, max_value=10**9), st.sampled_from(["total", "per-layer"]))
def test_counts_are_written_as_they_are_read(amount: int, unit: Any) -> None:
    assert Budget.parse(str(Budget(amount=amount, unit=unit))) == Budget(amount=amount, unit=unit)


@pytest.mark.parametrize(
    "text", ["0", "1", "20", "-1", "nan", "inf", "abc", "0n", "0/layer", "5/foo", "-5n", "1.5n", "", "n", "1_0n", True]
)
def test_refused(text: Any) -> None:
    with pytest.raises(UserError):
        Budget.parse(text)


def test_the_article_s_budget_is_3_of_1536_also_when_read_back() -> None:
    budget = Budget.parse("0.001953125")
    sites = {"a": site(0, 1536)}
    assert budget.units(sites) == 3
    assert Budget.parse(str(budget)).units(sites) == 3


def test_units() -> None:
    sites = {f"{layer}.{name}": site(layer, 100, name) for layer in range(3) for name in ("a", "b")}
    assert Budget.parse("7n").units(sites) == 7
    assert Budget.parse("5/layer").units(sites) == 15
    assert Budget.parse("0.0149").units(sites) == 8  # 8.94 rounded down
    assert Budget.parse("0.29").units({"a": site(0, 100)}) == 29  # though 0.29 * 100 is 28.999999999999996


def test_room_of_layers() -> None:
    sites = {f"{layer}.{name}": site(layer, 10 * (layer + 1), name) for layer in range(3) for name in ("a", "b")}
    assert Budget.parse("0.5").room(sites) == {0: 20, 1: 40, 2: 60}
    assert Budget.parse("0.5", max_layer_share=0.29).room(sites) == {0: 5, 1: 11, 2: 17}  # 5.8, 11.6 and 17.4 rounded down
    assert Budget.parse("0.5", max_layer_share=0.29).room({"a": site(0, 100)}) == {
        0: 29
    }  # 28.999999999999996 in floating point
    assert Budget.parse("15/layer", max_layer_share=0.3).room(sites) == {0: 6, 1: 12, 2: 15}
    assert Budget.parse("9n", protected_layers=frozenset({1, 7})).room(sites) == {0: 20, 1: 0, 2: 60}


PLAN = Plan(
    model="m",
    fingerprint="f",
    operator="remove",
    sites={"a": (1, 5)},
    requested={"budget": "2n"},
    achieved={"units": 2},
    reason=None,
)


def test_plans_are_read_as_they_were_written() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert PLAN.count == 2
    scaling = replace(PLAN, operator="scale", factor=0.5)
    assert Plan.from_json(scaling.to_json()) == scaling
    held = replace(PLAN, operator="mean", means={name: ((0.1,),) * len(units) for name, units in PLAN.sites.items()})
    assert Plan.from_json(held.to_json()) == held
    assert (PLAN.scaling, scaling.scaling, held.scaling) == (0.0, 0.5, Held(held.means))
    assert (PLAN.removes, scaling.removes, held.removes) == (True, False, True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "fairprune-plan/2"}, "its format must be 'fairprune-plan/1'"),
        ({"sites": {"a": [1.0]}}, "whole numbers. Got 1.0"),
        ({"sites": {"a": [False]}}, "whole numbers. Got False"),
        ({"sites": {"a": "12"}}, "whole numbers. Got '1'"),
        ({"sites": {"a": [5, 1]}}, "sorted, distinct"),
        ({"sites": {"a": [1, 1]}}, "sorted, distinct"),
        ({"sites": {"a": [-1, 1]}}, "not negative"),
        ({"sites": {"a": None}}, "no complete plan"),
        ({"achieved": 3}, "no complete plan"),
        ({"factor": 0.5}, "'factor'"),
        ({"operator": "scale"}, "'factor'"),
        ({"operator": "scale", "factor": 11}, "'factor'"),
        ({"operator": "grow"}, "'operator'"),
        ({"operator": "mean"}, "'means'"),
        ({"means": {"a": [[0.5], [1.0]]}}, "'means'"),
        ({"operator": "mean", "means": {"a": [[0.5]]}}, "'means'"),
        ({"operator": "mean", "means": {"a": [0.5, 1.0]}}, "no complete plan"),
        ({"operator": "mean", "means": {"a": [[0.5], ["1"]]}}, "A mean of 'a'"),
        ({"operator": "mean", "means": {"a": [[0.5], [10**400]]}}, "A mean of 'a'"),
        ({"operator": "mean", "means": {"a": [[0.5], [float("nan")]]}}, "A mean of 'a'"),
    ],
)
def test_plans_that_are_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=None) as caught:
        Plan.from_json({**PLAN.to_json(), **change}, "p.json")
    assert expected in str(caught.value)
    assert "p.json" in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "x", {}, {"format": "fairprune-plan/1"}])
def test_what_is_no_plan(data: Any) -> None:
    with pytest.raises(UserError):
        Plan.from_json(data)
