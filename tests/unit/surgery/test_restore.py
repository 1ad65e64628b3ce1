"""Where the pruned model and its restoration are looked for, an output that must not be written over, and what comes back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.recipes.recipe import PluginSpec
from fairprune_framework.surgery.partial import Part
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.surgery.restore import found_in, restore_folder, restored_model
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer
from fairprune_framework.utilities.files import read_json


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"format": "fairprune-run/1", "created": "", "stages": {}}')
    return path


def test_of_a_run_folder(tmp_path: Path) -> None:
    touched(tmp_path / "run.json")
    with pytest.raises(RunFolderError, match="holds no pruned model: its run abstained"):
        found_in(tmp_path)
    (tmp_path / "model").mkdir()
    assert found_in(tmp_path) == (tmp_path / "model", tmp_path / "restoration.safetensors")
    assert found_in(tmp_path, "other")[1] == Path("other")


def test_of_a_models_folder_inside_before_beside(tmp_path: Path) -> None:
    model = touched(tmp_path / "model" / "config.json").parent
    assert found_in(model) == (model, tmp_path / "restoration.safetensors")
    inside = touched(model / "restoration.safetensors")
    assert found_in(model) == (model, inside)


def test_of_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is neither a run folder \(no run.json\) nor a model \(no config.json\)"):
        found_in(tmp_path)


@pytest.mark.parametrize("as_file", [True, False])
def test_an_output_that_holds_something_is_left_alone(tmp_path: Path, as_file: bool) -> None:
    """Before anything is loaded: there is no restoration here."""
    touched(tmp_path / "run" / "run.json")
    (tmp_path / "run" / "model").mkdir()
    output = tmp_path / "out"
    touched(output if as_file else output / "something")
    with pytest.raises(UserError, match="is a file" if as_file else "exists and is not empty"):
        restore_folder(tmp_path / "run", output)
    with pytest.raises(UserError, match=r"there is no .*restoration"):
        restore_folder(tmp_path / "run", tmp_path / "new")
    assert not (tmp_path / "new").exists()


FIRST, SECOND = "model.layers.0.mlp", "model.layers.1.mlp"
PLANNED = {FIRST: (1, 5, 40), SECOND: (0, 2, 3, 7, 30)}


def pruned(folder: Path, operator: Any = "remove", widths: Any = "exact") -> tuple[dict[str, Tensor], str]:
    """Prune a tiny Llama into `folder/model`; returns the original's weights and its fingerprint."""
    model: Any = tiny_model("llama")
    means = {site: tuple((0.5,) for _ in units) for site, units in PLANNED.items()} if operator == "mean" else {}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    original = fingerprint(model)
    words: Any = {"operator": operator, "means": means, "sites": PLANNED, "requested": {}, "achieved": {}}
    save_pruned_model(
        model,
        tiny_tokenizer(),
        Plan(model="tiny", fingerprint=original, **words),
        recognise(model),
        folder / "model",
        probe_ids=torch.tensor([[3, 4, 5, 6]]),
        widths=widths,
        reload=lambda saved: load_model(str(saved))[0],
        restoration=folder / "restoration.safetensors",
    )
    return before, original


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(str(folder))[0].state_dict())


def unlike(one: dict[str, Tensor], two: dict[str, Tensor]) -> set[str]:
    assert one.keys() == two.keys()
    return {name for name, value in one.items() if not value.equal(two[name])}


@pytest.mark.parametrize("operator", ["remove", "zero", "mean"])
def test_the_whole_comes_back_in_files_and_in_memory(operator: str, tmp_path: Path) -> None:
    before, original = pruned(tmp_path, operator)
    done = restore_folder(tmp_path / "model", tmp_path / "out")
    assert (done.fingerprint, done.back, done.out) == (original, 8, 0)
    assert not unlike(weights_of(tmp_path / "out"), before)
    assert done.parameters == sum(value.numel() for value in fp.load_model(str(tmp_path / "out"))[0].parameters())
    model, tokenizer = restored_model(tmp_path / "model")
    assert not unlike(dict(model.state_dict()), before)
    assert tokenizer("The nurse")["input_ids"] == tiny_tokenizer()("The nurse")["input_ids"]
    assert not (tmp_path / "out" / "restoration.safetensors").exists()


@pytest.mark.parametrize("operator", ["remove", "zero", "mean"])
def test_a_layer_comes_back_and_the_rest_can_be_undone_later(operator: str, tmp_path: Path) -> None:
    before, original = pruned(tmp_path, operator)
    done = restore_folder(tmp_path / "model", tmp_path / "part", part=Part(layers=(1,)))
    assert (done.back, done.out) == (5, 3)
    assert done.fingerprint == fingerprint(load_model(str(tmp_path / "part"))[0]) != original
    assert {site: tuple(units) for site, units in read_json(tmp_path / "part" / "plan.json")["sites"].items() if units} == {
        FIRST: PLANNED[FIRST]
    }
    in_memory, _ = restored_model(tmp_path / "model", part=Part(layers=(1,)))
    if operator != "mean":  # biases that hold neurons at their means are computed again
        own = weights_of(tmp_path / "part")
        assert all(value.equal(before[name]) for name, value in own.items() if FIRST not in name)
        assert not unlike(dict(in_memory.state_dict()), own)
    again = restore_folder(tmp_path / "part", tmp_path / "back")
    assert (again.fingerprint, again.back, again.out) == (original, 3, 0)
    assert not unlike(weights_of(tmp_path / "back"), before)


@pytest.mark.parametrize("operator", ["remove", "mean"])
def test_a_part_that_is_all_of_the_plan_is_the_original(operator: str, tmp_path: Path) -> None:
    before, original = pruned(tmp_path, operator)
    done = restore_folder(tmp_path / "model", tmp_path / "out", part=Part(layers=(0, 1)))
    assert (done.fingerprint, done.back, done.out) == (original, 8, 0)
    assert not unlike(weights_of(tmp_path / "out"), before)
    assert not (tmp_path / "out" / "restoration.safetensors").exists()
    assert not (tmp_path / "out" / "plan.json").exists()


def test_what_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    touched(tmp_path / "model" / "config.json")
    restore = partial(restore_folder, tmp_path / "model")
    with pytest.raises(UserError, match="--output must name a folder"):
        restore("")
    for call in (partial(restore, tmp_path / "out"), partial(restored_model, tmp_path / "model")):
        with pytest.raises(UserError, match="--architecture says where the neurons of a part are"):
            call(architecture=PluginSpec(plugin="glu"))
    with pytest.raises(UserError, match="which is read: choose another --output"):
        restore(tmp_path / "model" / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "model"]


def test_a_file_of_the_pruned_model_that_was_changed_is_named(tmp_path: Path) -> None:
    from fairprune_framework.utilities.integrity import seal

    pruned(tmp_path)
    record: dict[str, Any] = {"format": "fairprune-run/1", "created": "", "stages": {}}
    record["stages"]["prune"] = {"key": "k", "files": seal(tmp_path, ["model", "restoration.safetensors"])}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert found_in(tmp_path)[0] == tmp_path / "model"
    with (tmp_path / "model" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(RunFolderError, match=r"config\.json is damaged: .*do the stage 'prune' again"):
        found_in(tmp_path)
    assert found_in(tmp_path, tmp_path / "restoration.safetensors")[0] == tmp_path / "model"
