"""Which planned neurons a part names, what it refuses by name, and the plan that is left."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.partial import Part, without
from fairprune_framework.testing.tiny import tiny_model

FIRST, SECOND = "model.layers.0.mlp", "model.layers.1.mlp"
PLAN = Plan(
    model="m",
    fingerprint="f",
    operator="scale",
    sites={FIRST: (1, 5, 9), SECOND: (0, 2)},
    factors={FIRST: (0.1, 0.5, 0.9), SECOND: (0.0, 0.2)},
    categories={FIRST: (0b01, 0b10, 0b11), SECOND: (0b10, 0b01)},
    category_names=("race", "age"),
    requested={"budget": "5n"},
    achieved={"units": 5},
)


@pytest.fixture(scope="module")
def sites() -> Any:
    return recognise(tiny_model("llama")).sites


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part(layers=(0,)), {FIRST: {1, 5, 9}}),
        (Part(categories=("race",)), {FIRST: {1, 9}, SECOND: {2}}),
        (Part(categories=("race", "age")), {FIRST: {1, 5, 9}, SECOND: {0, 2}}),
        (Part(layers=(1,), categories=("age",)), {SECOND: {0}}),
        (Part(neurons=("0:5",)), {FIRST: {5}}),
        (Part(neurons=(f"{SECOND}:2",), layers=(0,), categories=("age",)), {FIRST: {5, 9}, SECOND: {2}}),
    ],
)
def test_what_a_part_names(part: Part, expected: dict[str, set[int]], sites: Any) -> None:
    assert part
    assert part.of(PLAN, sites) == expected


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(layers=(7,)), r"took no neuron from layer 7; it did from 0, 1"),
        (Part(categories=("rase",)), r"no category 'rase'; there is race, age\. Did you mean 'race'\?"),
        (Part(neurons=("0:2",)), rf"did not take unit 2 of {FIRST}"),
        (Part(neurons=("0:x",)), r"--neuron"),
        (Part(), r"no planned neuron is of any layer and of any category"),
    ],
)
def test_what_a_part_cannot_name(part: Part, said: str, sites: Any) -> None:
    with pytest.raises(UserError, match=said):
        part.of(PLAN, sites)


def test_a_plan_that_knows_no_categories(sites: Any) -> None:
    plain = Plan(model="m", fingerprint="f", operator="zero", sites=PLAN.sites, requested={}, achieved={})
    assert Part(layers=(1,)).of(plain, sites) == {SECOND: {0, 2}}
    with pytest.raises(UserError, match="does not say for which category"):
        Part(categories=("race",)).of(plain, sites)


def test_a_layer_and_a_category_without_a_common_neuron(sites: Any) -> None:
    plan = Plan(
        model="m",
        fingerprint="f",
        operator="zero",
        sites=PLAN.sites,
        categories={FIRST: (1, 1, 1), SECOND: (2, 2)},
        category_names=("race", "age"),
        requested={},
        achieved={},
    )
    with pytest.raises(UserError, match="no planned neuron is of layer 1 and of category race"):
        Part(layers=(1,), categories=("race",)).of(plan, sites)


def test_what_is_left_keeps_factors_and_categories_of_its_neurons() -> None:
    left = without(PLAN, {FIRST: {5}, SECOND: {0, 2}})
    assert left.sites == {FIRST: (1, 9)}
    assert left.factors == {FIRST: (0.1, 0.9)}
    assert left.categories == {FIRST: (0b01, 0b11)}
    assert (left.requested, left.achieved) == (PLAN.requested, PLAN.achieved)
    assert Plan.from_json(left.to_json()) == left
