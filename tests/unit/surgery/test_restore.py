"""Where the pruned model and its restoration are looked for, and an output that must not be written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.surgery.restore import found_in, restore_folder


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
