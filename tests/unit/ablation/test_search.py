"""A grid that was stopped goes on, and one that has grown does its new cells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.ablation.ablate import ablate
from fairprune_framework.errors import RunFolderError


def test_a_stopped_grid_goes_on_and_a_grown_one_does_its_new_cells(
    done: Path, tmp_path: Path, grid: dict[str, Any], given: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    cells = sorted((folder / "cells").iterdir())
    kept = {path.name: path.stat().st_mtime_ns for path in cells[1:]}
    before = json.loads(cells[0].read_text())
    cells[0].unlink()
    (folder / "ablation.json").unlink()
    messages: list[str] = []
    record = ablate({**grid, "budget": ["12n"]}, folder, **given, notify=messages.append)
    assert record is not None
    again = json.loads(cells[0].read_text())
    assert [before[name] for name in ("units", "bias_change", "perplexity_change")] == [
        again[name] for name in ("units", "bias_change", "perplexity_change")
    ]
    assert {name: (folder / "cells" / name).stat().st_mtime_ns for name in kept} == kept
    assert "audit: done before" in messages
    assert ablate(grid, folder, **given, notify=pytest.fail) is not None  # nothing is left to do
    with pytest.raises(RunFolderError, match="other shared options"):
        ablate({**grid, "max_perplexity_increase": 4.0}, folder, **given)


def test_what_a_killed_process_left_in_the_runs_inside_goes(
    done: Path, tmp_path: Path, grid: dict[str, Any], given: dict[str, Any]
) -> None:
    """All cells were done: no run is opened again. What lies behind a link is not ours."""
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "run").mkdir(parents=True)
    left = [run / name for run in (folder / "base", folder / "search") for name in (".lock", ".recipe.yaml.6a58c76b.tmp")]
    others = [elsewhere / "run" / ".lock", elsewhere / "run" / ".recipe.yaml.6a58c76b.tmp"]
    for path in left + others:
        path.write_text("")
    (folder / "confirmed").symlink_to(elsewhere)
    assert ablate(grid, folder, **given) is not None
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
