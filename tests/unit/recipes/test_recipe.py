"""What a recipe refuses, and what it derives."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.api.types import Budget
from fairprune_framework.errors import UserError
from fairprune_framework.recipes.loading import from_mapping
from fairprune_framework.recipes.recipe import Recipe, budget_of, choices_of


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"budgte": 1}, "has no option 'budgte'. Did you mean 'budget'?"),
        ({"seed": None}, "The 'seed' of it must be a whole number. Got nothing instead."),
        ({"seed": -1}, "'seed'"),
        ({"seed": 2**63}, "'seed'"),
        ({"seed": "x"}, "must be a whole number. Got 'x' instead."),
        ({"force": "maybe"}, "must be true or false"),
        (
            {"dtype": "float31"},
            "must be one of auto, float32, bfloat16, float16. Got 'float31' instead. Did you mean 'float32'?",
        ),
        ({"operator": "scael"}, "must be one of remove, zero, scale"),
        ({"operator": "scale"}, "needs a factor"),
        ({"operator": "zero", "factor": 0.5}, "takes no factor"),
        ({"operator": "scale", "factor": -1}, "in [0, 10]"),
        ({"accelerator": "tpu"}, "must be one of auto, cpu"),
        ({"generate": "text"}, "'generate'"),
        ({"protected_layers": [-1]}, "counted from 0"),
        ({"protected_layers": ["a"]}, "a list, each a whole number"),
        ({"columns": "x"}, "must be a mapping"),
        ({"budget": 20}, "must be in (0, 1)"),
        ({"round_to": 0, "budget": 0.1}, "'round_to'"),
        ({"max_perplexity_increase": float("nan")}, "'max_perplexity_increase'"),
        ({"bias": 5}, "'bias'"),
        ({"bias": {"relative": True}}, "'bias'"),
        ({"bias": ""}, "'bias'"),
        ({"cache": ""}, "'cache' of a recipe must not be empty"),
        ({"generate": ["a", "\ud800"]}, "The 'generate' of a recipe holds half of a surrogate pair"),
        ({"columns": {"id": "\udfff"}}, "The 'columns' of a recipe holds half of a surrogate pair"),
        ({"model": "a\udcffb"}, "The 'model' of a recipe holds half of a surrogate pair, or bytes"),
        ({"bias": {"plugin": "variance", "x": "\ud800"}}, "The 'bias' of a recipe holds half of a surrogate pair"),
    ],
)
def test_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(values, "it")
    assert expected in str(caught.value)


def test_budget_of_a_recipe_has_its_side_conditions() -> None:
    budget = budget_of(Recipe(budget="16/layer", round_to=8, max_layer_share=0.5, protected_layers=(0,)))
    assert budget == Budget(amount=16, unit="per-layer", round_to=8, max_layer_share=0.5, protected_layers=frozenset({0}))
    with pytest.raises(UserError, match="names no budget"):
        budget_of(Recipe())


def test_more_than_one_process_is_distributed() -> None:
    assert [Recipe(**given).is_distributed for given in ({}, {"devices": 2}, {"devices": -1}, {"nodes": 2})] == [  # type: ignore[arg-type]
        False,
        True,
        True,
        True,
    ]


def test_choices_are_those_of_the_type() -> None:
    assert choices_of("prefix_sharing") == ("auto", "never")
    assert choices_of("operator") == ("remove", "zero", "scale", "mean")
    assert choices_of("seed") == ()
