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
        ({"micro_batch_tokens": 1}, "must be 0 (automatic) or at least 2. Got 1 instead."),
        ({"micro_batch_tokens": -1}, "must be 0 (automatic) or at least 2. Got -1 instead."),
        ({"devices": 0}, "must be at least 1, or -1 for all GPUs. Got 0 instead."),
        ({"devices": -2}, "must be at least 1, or -1 for all GPUs. Got -2 instead."),
        ({"rank_timeout": 0}, "must be at least 1 second. Got 0 instead."),
        ({"checkpoint_every": -1}, "'checkpoint_every' of a recipe must not be negative. Got -1 instead."),
        ({"nodes": 0}, "The 'nodes' of a recipe must be at least 1. Got 0 instead."),
        ({"calibration_tokens": 1}, "The 'calibration_tokens' of a recipe must be at least 2. Got 1 instead."),
        ({"calibration_documents": 3}, "The 'calibration_documents' of a recipe must be at least 4. Got 3 instead."),
        ({"operator": "scale", "factor": "half"}, "must be a number or 'auto'. Got 'half' instead."),
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seed": "4"}, "The 'seed' of a recipe must be a whole number. Got '4' instead."),
        ({"seed": True}, "The 'seed' of a recipe must be a whole number. Got True instead."),
        ({"protected_layers": "1"}, "The 'protected_layers' of a recipe must be a list. Got '1' instead."),
        ({"protected_layers": 1}, "The 'protected_layers' of a recipe must be a list. Got 1 instead."),
    ],
)
def test_types_are_not_guessed_in_python(values: dict[str, Any], expected: str) -> None:
    """A file and the command line give texts, which are read; a call gives values."""
    with pytest.raises(UserError) as caught:
        Recipe(**values)
    assert str(caught.value) == expected


def test_limits_themselves_are_taken() -> None:
    given = {"micro_batch_tokens": 2, "devices": -1, "rank_timeout": 1, "checkpoint_every": 0, "nodes": 1}
    given |= {"calibration_tokens": 2, "calibration_documents": 4, "max_perplexity_increase": 0.0, "seed": 2**63 - 1}
    recipe = from_mapping(given, "it")
    assert {name: getattr(recipe, name) for name in given} == given


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
