"""The words of a command line become options of a recipe, by the types of its fields."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.cli.options import (
    add_recipe_options,
    join_negative_values,
    new_parser,
    option_strings,
    recipe_options,
    split_plugin_options,
)
from fairprune_framework.errors import UserError
from fairprune_framework.recipes.loading import from_mapping
from fairprune_framework.recipes.recipe import FIELDS


@pytest.fixture(scope="module")
def parser() -> Any:
    made = new_parser("a stage")
    add_recipe_options(made)
    return made


def test_every_field_but_the_model_is_an_option(parser: Any) -> None:
    assert set(option_strings(parser)) - {"--help"} == {f"--{name.replace('_', '-')}" for name in FIELDS} - {"--model"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "3", "--force", "--budget", "12n"], {"seed": 3, "force": True, "budget": "12n"}),
        (["--protected-layers", "0,4"], {"protected_layers": (0, 4)}),
        (["--columns", "a=b", "--columns", "c=d=e"], {"columns": {"a": "b", "c": "d=e"}}),
        (["--generate", "The man", "--generate", "A, B"], {"generate": ("The man", "A, B")}),
        (["--max-layer-share", "0.5", "--dtype", "bfloat16"], {"max_layer_share": 0.5, "dtype": "bfloat16"}),
    ],
)
def test_words_reach_the_recipe(parser: Any, words: list[str], expected: dict[str, Any]) -> None:
    options = recipe_options(parser.parse_args(words, defaults=False).as_dict())
    assert set(options) == set(expected)
    recipe = from_mapping(options, "it")
    assert {name: getattr(recipe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protected_layers": "a,1"}, "--protected-layers must be numbers such as 0,1. Got 'a,1' instead."),
        ({"columns": ["context"]}, "--columns must be FIELD=COLUMN. Got 'context' instead."),
        ({"judge_prompts": ["=x"]}, "--judge-prompts must be NAME=SET. Got '=x' instead."),
    ],
)
def test_what_is_no_list_or_pair_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_options(given)
    assert str(caught.value) == message


def test_options_of_plugins_are_taken_out() -> None:
    words = ["plan", "--bias.relative=true", "--seed", "1", "--policy.weight", "0.5", "--policy.names", "[a, b]"]
    options, rest = split_plugin_options(words)
    assert options == {"bias.relative": True, "policy.weight": 0.5, "policy.names": ["a", "b"]}
    assert rest == ["plan", "--seed", "1"]
    with pytest.raises(UserError, match=r"--bias\.relative needs a value"):
        split_plugin_options(["--bias.relative"])
    with pytest.raises(UserError, match="is no YAML"):
        split_plugin_options(["--bias.relative", "[1"])


def test_a_negative_value_belongs_to_its_option() -> None:
    assert join_negative_values(["run", "--budget", "-5n", "--seed", "-1", "-h"]) == ["run", "--budget=-5n", "--seed=-1", "-h"]
    assert join_negative_values(["run", "--budget=1", "-5"]) == ["run", "--budget=1", "-5"]
