"""Recipes from files and options: which source wins, dotted options, and what is refused."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import yaml

from fairprune_framework import discovery
from fairprune_framework.errors import UnknownName, UserError
from fairprune_framework.recipes.loading import from_mapping, load_recipe, read_shipped, with_defaults, with_options
from fairprune_framework.recipes.recipe import PluginSpec, Recipe
from fairprune_framework.utilities.yaml_text import read_yaml


def test_shipped_recipes_name_everything_and_load_no_package() -> None:
    import sys

    before = set(sys.modules)
    for name in ("default", "variance", "article"):
        recipe = load_recipe(name, {})
        assert None not in (recipe.bias, recipe.importance, recipe.policy, recipe.budget, recipe.operator)
    assert "fairprune_recipes" not in set(sys.modules) - before


def test_shipped_recipes_mean_the_plugins_of_their_own_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that offer plugins and recipes of the same names break none of them, nor what builds on the default."""
    known = list(discovery.offers())
    plain = {name: read_shipped(name) for name in ("default", "variance", "relative-variance")}
    foreign = [
        (metadata.EntryPoint(name, "nowhere:It", group), "others", "1")
        for name, group in (
            ("variance", "fairprune.bias_scorers"),
            ("uniform", "fairprune.selection_policies"),
            ("default", "fairprune.recipes"),
        )
    ]
    monkeypatch.setattr(discovery, "offers", lambda: [*foreign, *known])
    assert read_shipped("variance") == plain["variance"] | {
        "bias": "fairprune_framework:variance",
        "policy": plain["variance"]["policy"] | {"plugin": "fairprune_framework:uniform"},
    }
    assert read_shipped("relative-variance")["bias"] == {"plugin": "fairprune_framework:variance", "relative": True}
    assert load_recipe(None, {}) == load_recipe("default", {}) == from_mapping(plain["default"], "it")
    assert with_defaults(Recipe(bias=PluginSpec(plugin="mine"))).policy == PluginSpec.parse(
        plain["default"]["policy"], "policy"
    )


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("bias: gate-up-difference\nseed: 3\nbudget: 4/layer\n")
    recipe = load_recipe(str(file), {"seed": 5})
    assert recipe.bias == PluginSpec(plugin="gate-up-difference")
    assert (recipe.seed, recipe.budget) == (5, "4/layer")
    assert recipe.importance == PluginSpec.parse(read_shipped("default")["importance"], "importance")


def test_dotted_options_are_laid_over_the_plugin_that_is_named() -> None:
    base = {"policy": {"plugin": "uniform", "weight": 0.8, "normalisation": "rank"}, "bias": "variance"}
    recipe = with_options(base, {"policy.weight": 0.1, "bias.relative": True}, "it")
    assert recipe.policy == PluginSpec(plugin="uniform", options={"weight": 0.1, "normalisation": "rank"})
    assert recipe.bias == PluginSpec(plugin="variance", options={"relative": True})
    assert base["bias"] == "variance"


def test_naming_a_plugin_drops_the_options_of_the_one_before() -> None:
    base = {"bias": {"plugin": "variance", "relative": True}}
    assert with_options(base, {"bias": "other"}, "it").bias == PluginSpec(plugin="other")
    assert with_options(base, {"bias": "other", "bias.some-thing": 1}, "it").bias == PluginSpec(
        plugin="other", options={"some_thing": 1}
    )


def test_naming_an_operator_drops_the_factor_of_the_one_before() -> None:
    base = {"operator": "scale", "factor": "0.5"}
    assert with_options(base, {"seed": 1}, "it").multiplier() == 0.5
    assert with_options(base, {"operator": "zero"}, "it").factor is None
    assert with_options(base, {"operator": "scale", "factor": "auto"}, "it").multiplier() is None


def test_dashes_and_underscores_are_one() -> None:
    assert from_mapping({"max-layer-share": 0.5, "micro_batch_tokens": 64}, "it").max_layer_share == 0.5


def test_what_is_written_is_read_as_the_same() -> None:
    recipe = load_recipe(
        "article", {"model": "m", "prompts": "p", "generate": ["a"], "protected_layers": [1], "columns": {"a": "b"}}
    )
    text = yaml.safe_dump(recipe.to_yaml(), sort_keys=False)
    assert from_mapping(yaml.safe_load(text), "it") == recipe
    assert with_defaults(recipe) is recipe


def test_open_fields_are_taken_from_the_default() -> None:
    recipe = Recipe(model="m", budget="3n")
    resolved = with_defaults(recipe)
    assert resolved.budget == "3n"
    assert resolved.bias == PluginSpec.parse(read_shipped("default")["bias"], "bias")
    assert with_options(recipe, {"seed": 4}) == Recipe(model="m", budget="3n", seed=4)


def test_a_factor_without_its_operator_is_refused_not_dropped() -> None:
    with pytest.raises(UserError, match="takes no factor"):
        with_defaults(Recipe(factor="0.5"))


def test_dotted_options_that_make_no_sense() -> None:
    with pytest.raises(UnknownName, match=r"no option --bais\.relative\. Did you mean 'bias'"):
        with_options({}, {"bais.relative": 1}, "it")
    with pytest.raises(UserError, match="no architecture is named"):
        with_options({}, {"architecture.x": 1}, "it")


def test_yaml_errors_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("seed: 1\nbias: {plugin: x\nbudget: 1\n")
    with pytest.raises(UserError, match=r"r\.yaml, line 3 is no YAML"):
        read_yaml(file)
    file.write_text("bias:\n  plugin: a\n  plugin: b\n")
    with pytest.raises(UserError, match=r"line 3 is no YAML: the key 'plugin' occurs twice"):
        read_yaml(file)


def test_recipes_know_no_plugin_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework import discovery

    monkeypatch.setattr(discovery, "offers", list)
    with pytest.raises(UnknownName, match="no recipe named 'fairprune_framework:default'"):
        load_recipe(None, {})
