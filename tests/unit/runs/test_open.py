"""Options over a recipe over a folder's own, and folders that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fairprune_framework.errors import RunFolderError, UnknownName, UserError
from fairprune_framework.recipes.loading import read_shipped, with_defaults
from fairprune_framework.recipes.recipe import PluginSpec, Recipe
from fairprune_framework.runs.open import open_existing, open_run
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer
from fairprune_framework.utilities import files, lock


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder in which a stage began."""
    run = open_run(tmp_path / "run", {"model": "m", "prompts": "builtin:en", "budget": "7n", "devices": 2}, recipe="variance")
    run.folder.begin("read")
    return tmp_path / "run"


def test_a_new_folder_starts_from_the_recipe_that_is_named(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {"budget": "0.2", "bias.relative": True}, recipe="variance")
    shipped = read_shipped("variance")
    assert run.recipe.bias == PluginSpec(plugin="variance", options={"relative": True})
    assert run.recipe.budget == "0.2"
    assert run.recipe.policy == PluginSpec.parse(shipped["policy"], "policy")
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_keeps_its_own(kept: Path) -> None:
    run = open_run(kept, {"seed": 4})
    assert (run.recipe.model, run.recipe.budget, run.recipe.seed) == ("m", "7n", 4)
    assert run.recipe.devices == Recipe().devices != 2  # on how many devices it was computed is not kept
    again = open_run(kept, {"seed": 4}, fresh=True)
    assert (again.recipe.model, again.recipe.budget) == (None, str(read_shipped("default")["budget"]))


def test_a_recipe_over_that_of_the_folder(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("operator: scale\nfactor: 0.5\n")
    run = open_run(kept, {"budget": "9n"}, recipe=str(tmp_path / "more.yaml"))
    assert (run.recipe.model, run.recipe.budget, run.recipe.operator, run.recipe.factor) == ("m", "9n", "scale", "0.5")
    whole = open_run(kept, {}, recipe=Recipe(model="other"))
    assert (whole.recipe.model, whole.recipe.budget) == ("other", with_defaults(Recipe()).budget)


def test_models_and_prompts_by_name_or_in_memory(tmp_path: Path) -> None:
    named = open_run(None, {}, model=Path("some/model"), prompts="x.jsonl")
    assert (named.recipe.model, named.recipe.prompts) == ("some/model", "x.jsonl")
    model: Any = tiny_model("llama")
    held = open_run(None, {}, model=model, tokenizer=tiny_tokenizer(), prompts=tiny_contrasts())
    assert held.loaded.model is model
    assert list(held.prompts.contrasts) == tiny_contrasts()
    assert held.folder.temporary


@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_no_run_folder_is_left_alone(tmp_path: Path, as_file: bool) -> None:
    place = tmp_path / "x"
    if as_file:
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    with pytest.raises(RunFolderError, match=r"x exists and is not a run folder \(it contains no run\.json\)"):
        open_run(place, {})
    (tmp_path / "empty").mkdir()
    assert open_run(tmp_path / "empty", {}).recipe.budget is not None


def test_wrong_options_name_their_place(kept: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'budget'"):
        open_run(kept, {"buget": "3n"})
    content = yaml.safe_load((kept / "recipe.yaml").read_text())
    (kept / "recipe.yaml").write_text(yaml.safe_dump({**content, "nonsense": 1}))
    with pytest.raises(UserError, match=r"recipe\.yaml has no option 'nonsense'"):
        open_run(kept, {})


def test_a_folder_that_must_be_there(kept: Path, tmp_path: Path) -> None:
    assert open_existing(str(kept), {"seed": 3}).recipe.seed == 3
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file", "a\0b", "x" * 300):
        with pytest.raises(RunFolderError, match="there is no run folder"):
            open_existing(tmp_path / name)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        open_existing(tmp_path)
    with pytest.raises(UserError, match="must name a folder"):
        open_run("", {})


@pytest.mark.parametrize("content", [None, b'{"format": "fairprune-run/1", "stages": {"read": {}}}', b"{"])
def test_a_kill_before_the_first_recipe_was_written(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on; a folder whose recipe went later, or with a record that cannot be read, is not begun anew."""

    class Killed(BaseException):
        pass

    written = files.write_text

    def killed(path: Path, text: str) -> None:
        if path.name == "recipe.yaml":
            raise Killed
        written(path, text)

    run = open_run(tmp_path / "run", {"model": "m", "prompts": "builtin:en"}, recipe="variance")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "write_text", killed)
        run.folder.begin("read")
    lock.release(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").is_file()
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    if content is not None:
        (tmp_path / "run" / "run.json").write_bytes(content)
        with pytest.raises(UserError, match=r"no recipe file .*recipe\.yaml"):
            open_run(tmp_path / "run", {"model": "m", "prompts": "builtin:en"}, recipe="variance")
        return
    again = open_run(tmp_path / "run", {"model": "m", "prompts": "builtin:en"}, recipe="variance")
    again.folder.begin("read")
    assert open_existing(tmp_path / "run").recipe == again.recipe
