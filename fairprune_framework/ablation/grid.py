"""A grid file into cells: every combination of its axes, and random controls at equal budget, validated before anything runs.

    bias: [attribution, {plugin: attribution, objective: sentence}]
    importance: [taylor, output-norm]
    policy: [protected-global, {plugin: protected-global, protect: 0.3}]
    operator: [zero, {operator: scale, factor: 0.5}]
    budget: ["0.001", "0.002"]
    seed: [0]
    controls: [random, {plugin: random, matched: true}]
    control_seeds: 3
    judge: next-token-divergence

A missing axis has the value of the recipe. Every other key is an option of the recipe, shared by all cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from fairprune_framework import discovery
from fairprune_framework.api.declared import needs_of
from fairprune_framework.api.interfaces import Plugin
from fairprune_framework.errors import UserError, did_you_mean
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, IDEALS
from fairprune_framework.recipes.loading import load_recipe, merge_options, refuse_unsafe, with_defaults, with_options
from fairprune_framework.recipes.recipe import FIELDS, PluginSpec, Recipe, budget_of
from fairprune_framework.utilities.files import digest
from fairprune_framework.utilities.yaml_text import read_yaml

AXES = ("bias", "importance", "policy", "operator", "budget", "seed")
KINDS: tuple[discovery.Kind, ...] = ("bias", "importance", "policy")
CONTROLS, CONTROL_SEEDS = "controls", "control_seeds"
DEFAULT_CONTROL_SEEDS = 3
JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe of a grid."""

    recipe: Recipe
    control: bool = False
    """A policy without knowledge of the scores, which a method must beat."""

    @property
    def choices(self) -> dict[str, Any]:
        """The axes in the form of `recipe.yaml`, with `factor` beside `operator`."""
        written = self.recipe.to_yaml()
        return {name: written[name] for name in (*AXES, "factor")}

    @property
    def id(self) -> str:
        """Ten digits that depend on the choices only, so that an extended grid reuses its old cells."""
        return digest([self.choices, self.control])[:10]

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """Bias scorer, importance scorer and policy."""
        return tuple(built(kind, getattr(self.recipe, kind)) for kind in KINDS)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The content of a grid file."""

    recipe: Recipe
    """The shared options, with the first value of each axis."""
    cells: tuple[Cell, ...]
    judge: str = DIVERGENCE
    """The judging metric of all cells."""

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The distinct plugins of all cells."""
        return tuple(dict.fromkeys(plugin for cell in self.cells for plugin in cell.plugins))

    @property
    def key(self) -> str:
        """Hash over everything that determines the numbers."""
        shared = {name: value for name, value in self.recipe.to_file().items() if name not in (*AXES, "factor")}
        return digest([shared, self.judge])


def built(kind: discovery.Kind, spec: PluginSpec) -> Plugin:
    """The plugin of a recipe."""
    return discovery.build(kind, spec.plugin, spec.options)


def read_grid(source: str | Path | Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid from a YAML file, or from a mapping.

    Args:
        options: fields of the recipe that override those of the grid; no axis.

    Raises:
        UserError: an unknown key or plugin (did you mean), an empty axis, a value out of range, a duplicate or impossible cell.
    """
    where = str(source) if isinstance(source, (str, Path)) else "the grid"
    data = dict(source) if isinstance(source, Mapping) else read_yaml(Path(source), "grid")
    refuse_unsafe(data, where)
    options = dict(options or {})
    for name in data:
        if name not in (*AXES, CONTROLS, CONTROL_SEEDS, JUDGE, "recipe", *FIELDS) or name == "factor":
            hint = " A factor belongs to its operator: {operator: scale, factor: 0.5}." if name == "factor" else ""
            raise UserError(f"{where} has no key {name!r}.{hint or did_you_mean(str(name), (*AXES, CONTROLS, JUDGE, *FIELDS))}")
    for name in options:
        if name.partition(".")[0] in (*AXES, "factor") and name.partition(".")[0] in (*data, "factor"):
            raise UserError(f"--{name} is already set in the grid {where}")
    shared = {name: data[name] for name in data if name in FIELDS and name not in AXES}
    base = load_recipe(data.get("recipe"), {})
    base = with_defaults(with_options(merge_options(base.to_yaml(), shared), options, where))
    axes = {name: _axis(name, data, base, where) for name in AXES}
    cells = [_cell(base, dict(zip(AXES, values, strict=True)), where) for values in product(*axes.values())]
    cells += _controls(base, axes, data, where)
    _refuse_duplicates(cells, where)
    judge = data.get(JUDGE, DIVERGENCE)
    if judge not in IDEALS:
        raise UserError(f"{where} can judge by {', '.join(IDEALS)}. Got {judge!r} instead.{did_you_mean(str(judge), IDEALS)}")
    return Grid(recipe=cells[0].recipe, cells=tuple(cells), judge=judge)


def _axis(name: str, data: Mapping[str, Any], base: Recipe, where: str) -> list[Any]:
    if name not in data:
        own = getattr(base, name)
        return [{"operator": own, "factor": base.factor} if name == "operator" else own]
    values = data[name] if isinstance(data[name], list) else [data[name]]
    if not values:
        raise UserError(f"the axis {name!r} of {where} is empty")
    return values


def _cell(base: Recipe, values: Mapping[str, Any], where: str, control: bool = False) -> Cell:
    chosen = dict(values)
    if (empty := next((name for name, value in chosen.items() if value is None), None)) is not None:
        raise UserError(f"the axis {empty!r} of {where} holds an empty value")
    operator = chosen["operator"]
    if isinstance(operator, Mapping):
        if bad := set(operator) - {"operator", "factor"}:
            raise UserError(f"an operator of {where} is a name or {{operator: scale, factor: 0.5}}. Got the key {min(bad)!r}.")
        chosen |= {"operator": operator.get("operator"), "factor": operator.get("factor")}
    else:
        chosen["factor"] = None
    if chosen["operator"] == "scale" and chosen["factor"] is None:
        raise UserError(f"impossible cell in {where}: the operator scale needs its factor: {{operator: scale, factor: 0.5}}")
    try:
        recipe = with_options(base, chosen)
        cell = Cell(recipe=recipe, control=control)
        budget_of(recipe)
        policy = cell.plugins[2]
    except UserError as error:
        raise UserError(f"impossible cell in {where}: {error}") from error
    if needs_of(policy).probe and recipe.factor == "auto":
        name = cast(PluginSpec, recipe.policy).plugin
        raise UserError(f"impossible cell in {where}: {name} probes during selection and needs a number as factor, not auto")
    return cell


def _controls(base: Recipe, axes: Mapping[str, Sequence[Any]], data: Mapping[str, Any], where: str) -> list[Cell]:
    """Each control policy at every budget and operator, with the first scorers and its own seeds."""
    given = data.get(CONTROLS) or []
    policies = given if isinstance(given, list) else [given]
    seeds = data.get(CONTROL_SEEDS, DEFAULT_CONTROL_SEEDS)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UserError(f"The {CONTROL_SEEDS!r} of {where} must be a whole number of at least 1. Got {seeds!r} instead.")
    first = {"bias": axes["bias"][0], "importance": axes["importance"][0]}
    combinations = product(policies, axes["operator"], axes["budget"], range(seeds))
    return [
        _cell(base, {**first, "policy": policy, "operator": operator, "budget": budget, "seed": seed}, where, control=True)
        for policy, operator, budget, seed in combinations
    ]


def _refuse_duplicates(cells: Sequence[Cell], where: str) -> None:
    seen: dict[Any, Cell] = {}
    for cell in cells:
        recipe = cell.recipe
        effect = (recipe.operator, recipe.factor) if recipe.operator in ("scale", "mean") else ("silence",)
        key = (cell.plugins, effect, str(budget_of(recipe)), recipe.seed)
        if (other := seen.setdefault(key, cell)) is not cell:
            both = {name: (a, b) for (name, a), b in zip(cell.choices.items(), other.choices.values(), strict=True) if a != b}
            why = f"; {' and '.join(map(str, both['operator']))} are identical under masking" if "operator" in both else ""
            raise UserError(f"duplicate cell in {where}: {described(cell)}{why}")


def described(cell: Cell) -> str:
    """A cell in one line."""
    words = []
    for name, value in cell.choices.items():
        if name == "factor" and value is None:
            continue
        if isinstance(value, Mapping):
            rest = ", ".join(f"{key} {option}" for key, option in value.items() if key != "plugin")
            value = f"{value['plugin']} ({rest})"
        words.append(f"{name} {value}")
    return ", ".join(words)
