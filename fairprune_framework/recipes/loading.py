"""Recipes from mappings, YAML files and options.

Sources in order, later wins: the recipe that ships as `default`, the recipe that is named, options on the command line. No name of a
plugin occurs here: the shipped recipes are YAML files found by the entry-point group `fairprune.recipes`, read without importing
anything.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.errors import UnknownName, UserError, did_you_mean, shortened, shown
from fairprune_framework.recipes.recipe import FIELDS, LOGGERS, PLUGIN_KINDS, UNSAFE, PluginSpec, Recipe, choices_of
from fairprune_framework.utilities.yaml_text import read_yaml

DEFAULT = "default"
SHIPPED_DEFAULT = f"{discovery.OWN}:{DEFAULT}"
"""That of this distribution, whatever others ship."""


def from_mapping(values: Mapping[str, Any], where: str) -> Recipe:
    """Make a recipe from a mapping, types checked.

    Raises:
        UserError: an unknown key (did you mean), or a value of the wrong type or out of range.
    """
    from jsonargparse import ArgumentParser

    hints = typing.get_type_hints(Recipe)
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise UnknownName(f"{where} has no option {shown(key)}.{did_you_mean(shortened(name), FIELDS)}")
        if value is None and type(None) not in typing.get_args(hints[name]):
            raise UserError(f"The {name!r} of {where} must be {discovery.in_words(hints[name])}. Got nothing instead.")
        if name not in (*PLUGIN_KINDS, "budget", "factor") and value is not None:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--value", type=hints[name])
            try:
                value = parser.parse_object({"value": value}).value
            except Exception as error:
                raise UserError(
                    f"The {name!r} of {where} must be {discovery.in_words(hints[name])}. Got {shown(value)} instead."
                    + did_you_mean(shown(value), choices_of(name))
                ) from error
        checked[name] = value
    return Recipe(**checked)


def read_shipped(name: str) -> dict[str, Any]:
    """The content of a recipe that a distribution ships, read without importing its package.

    Its plugins are those of that distribution where others offer one of the same name.
    """
    entry = discovery.find("recipe", name)
    try:
        spec = find_spec(entry.value.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / f"{entry.name}.yaml"
        if path.is_file():
            return _of_its_own(read_options(path), entry.distribution)
    raise UserError(f"{entry.label}: no file {entry.name}.yaml in the package {entry.value}")


def _of_its_own(values: dict[str, Any], distribution: str) -> dict[str, Any]:
    """A shipped recipe, with the distribution before the name of each plugin that several distributions offer."""
    own, known = dict(values), discovery.every_entry()
    for kind in PLUGIN_KINDS:
        given = values.get(kind)
        name = given.get("plugin") if isinstance(given, Mapping) else given
        if isinstance(name, str) and (full := discovery.name_within(known[kind], name, distribution)) != name:
            own[kind] = {**given, "plugin": full} if isinstance(given, Mapping) else full
    return own


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """The content of a recipe: a file where the name has a slash or ends in .yaml or .yml, otherwise one that is shipped."""
    if name_or_file.endswith((".yaml", ".yml")) or "/" in name_or_file:
        return read_options(Path(name_or_file))
    return read_shipped(name_or_file)


def refuse_unsafe(values: Mapping[Any, Any], where: str) -> None:
    """Options that let code run come from the command line or from a Python call, never from a file.

    Raises:
        UserError: the content of a file gives one of them; its name and the way to give it are in the message.
    """
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if (name in UNSAFE and value not in (None, False)) or (name == "log" and value is not None and value not in LOGGERS):
            flag = f"--{name.replace('_', '-')}"
            what = f"a logger other than {' and '.join(LOGGERS)}" if name == "log" else repr(name)
            raise UserError(
                f"{where} asks for {what}, which can run code. No file may ask for that: remove it there and, if you trust its "
                f"source, give {flag} on the command line (or {name}=... in Python)"
            )


def read_options(path: Path) -> dict[str, Any]:
    """The options in a recipe file, or in the `recipe.yaml` of a run folder.

    Raises:
        UserError: as `read_yaml` and `refuse_unsafe`.
    """
    values = read_yaml(path)
    refuse_unsafe(values, str(path))
    return values


def merge_options(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe with others over them; another operator drops the factor of the first."""
    merged = dict(options)
    if more.get("operator") not in (None, merged.get("operator")):
        merged.pop("factor", None)
    return merged | dict(more)


def with_options(recipe: Recipe | Mapping[str, Any], options: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe with options over it, checked anew.

    Args:
        recipe: a recipe, or its fields as a mapping.
        options: fields, and dotted options of plugins: `{"bias.relative": True}` is an option of the plugin that `recipe` names.
            Another plugin drops the options of the first, another operator its factor.
        where: what messages call the recipe.

    Raises:
        UserError: as `from_mapping`; an option of a plugin that is not named.
    """
    values = recipe.to_yaml() if isinstance(recipe, Recipe) else recipe
    merged = merge_options(values, {key: value for key, value in options.items() if "." not in key})
    for key, value in options.items():
        kind, dot, option = key.partition(".")
        if not dot:
            continue
        if kind not in PLUGIN_KINDS:
            raise UnknownName(f"no option --{key}.{did_you_mean(kind, PLUGIN_KINDS)}")
        if merged.get(kind) is None:
            raise UserError(f"--{key} needs --{kind}: no {kind} is named")
        spec = PluginSpec.parse(merged[kind], kind)
        merged[kind] = {"plugin": spec.plugin, **spec.options, option.replace("-", "_"): value}
    return from_mapping(merged, where)


def with_defaults(recipe: Recipe) -> Recipe:
    """A recipe whose open fields (plugins, budget, operator) are taken from the recipe `default`; the same one if none is open."""
    if None not in (recipe.bias, recipe.importance, recipe.policy, recipe.budget, recipe.operator):
        return recipe
    default = read_shipped(SHIPPED_DEFAULT)
    if recipe.operator is not None:
        default.pop("factor", None)
    return from_mapping(default | {key: value for key, value in recipe.to_yaml().items() if value is not None}, "the recipe")


def load_recipe(name_or_file: str | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a command: the shipped default, the recipe that is named, the options given (see `with_options`).

    Raises:
        UserError: as `read_recipe` and `with_options`.
    """
    values = read_shipped(SHIPPED_DEFAULT)
    if name_or_file is not None and name_or_file != DEFAULT:
        values = merge_options(values, read_recipe(name_or_file))
    return with_options(values, options, f"the recipe {name_or_file or DEFAULT!r}")
