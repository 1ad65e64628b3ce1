"""What stands with a field of the recipe decides what a run folder keys on and hands on."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework import discovery
from fairprune_framework.recipes.loading import load_recipe, with_options
from fairprune_framework.recipes.option import GROUPS, Stage
from fairprune_framework.recipes.recipe import FIELDS, OPTIONS, PLUGIN_KINDS, Recipe, choices_of
from fairprune_framework.runs.folder import STAGES, RunFolder
from fairprune_framework.runs.open import open_run

OTHER: dict[str, Any] = {
    "budget": "7n",
    "factor": "0.25",
    "max_layer_share": 0.5,
    "max_perplexity_increase": 0.5,
    "columns": {"context": "where"},
    "judge_prompts": {"other": "builtin:en"},
    "protected_layers": [1],
    "generate": ["The man"],
    "suite": ["bias"],
    "split": "row:odd-even",
    "calibration": "text.txt",
    "micro_batch_tokens": 64,
}


def other(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another value of this field."""
    value = getattr(recipe, name)
    if name in OTHER:
        new = OTHER[name]
    elif name in PLUGIN_KINDS:
        new = next(entry.name for entry in discovery.entries(name) if value is None or entry.name != value.plugin)
    elif choices := choices_of(name):
        new = next(choice for choice in choices if choice not in (value, "scale"))
    elif isinstance(value, bool):
        new = not value
    else:
        new = value + 1 if isinstance(value, int) else "another"
    base = with_options(recipe, {"operator": "scale", "factor": 0.5}) if name == "factor" else recipe
    changed = with_options(base, {name: new})
    assert getattr(changed, name) != value
    return changed


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Some text.\n")


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_changes_the_keys_of_its_stage_and_of_later_ones_alone(name: str, text: None) -> None:
    recipe = load_recipe(None, {"model": "m", "prompts": "p", "operator": "zero"})
    if name == "factor":
        recipe = with_options(recipe, {"operator": "scale", "factor": 0.5})
    before, after = RunFolder(recipe, Path("run")), RunFolder(other(recipe, name), Path("run"))
    changed = [stage for stage in STAGES if before.key(stage) != after.key(stage)]
    stage = OPTIONS[name].stage
    assert changed == ([] if stage is None else list(STAGES[STAGES.index(stage) :]))


@pytest.mark.parametrize("name", FIELDS)
def test_where_the_plan_came_as_a_file_only_adopted_fields_count(name: str, text: None) -> None:
    recipe = load_recipe(None, {"model": "m", "prompts": "p", "operator": "zero"})
    if name == "factor":
        recipe = with_options(recipe, {"operator": "scale", "factor": 0.5})
    before, after = RunFolder(recipe, Path("run")), RunFolder(other(recipe, name), Path("run"))
    for folder in (before, after):
        folder.record["plan_file"] = "hash of a plan"
    assert (before.key("prune") != after.key("prune")) == OPTIONS[name].adopted


def test_a_folder_does_not_hand_on_how_a_command_computed(tmp_path: Path) -> None:
    given = {"model": "m", "prompts": "p", "devices": 2, "strategy": "ddp", "log": "csv", "compile": True}
    first = open_run(tmp_path / "run", given)
    (tmp_path / "run").mkdir()
    first.folder.save()
    again = open_run(tmp_path / "run", {}).recipe
    assert (again.devices, again.strategy, again.log) == (1, "auto", None)
    assert again.compile


def test_every_option_has_a_place_in_the_help() -> None:
    assert [name for name, option in OPTIONS.items() if option.group is None] == ["model"]
    assert {option.group for option in OPTIONS.values()} == {None, *GROUPS}
    assert all(option.help.strip() for option in OPTIONS.values())


def test_stages_are_those_of_a_run_folder() -> None:
    assert typing.get_args(Stage) == STAGES
