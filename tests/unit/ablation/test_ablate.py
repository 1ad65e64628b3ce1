"""What a grid on the planted model finds, alone or in parts, and grids that are refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fairprune_framework.ablation.ablate import ablate
from fairprune_framework.errors import UserError
from fairprune_framework.testing.planted import Planted


def test_the_planted_neurons_beat_every_control(done: Path) -> None:
    record = json.loads((done / "ablation.json").read_text())
    cells = record["cells"]
    assert len(cells) == 8
    assert record["cells_looked_at"] == 8
    assert record["confirmed"] is None
    for operator in ("zero", "scale"):
        mine = [c["bias_change"] for c in cells if c["operator"] == operator and not c["control"]]
        controls = [c["bias_change"] for c in cells if c["operator"] == operator and c["control"]]
        assert max(mine) < -0.2 < min(controls)
    assert all(cell["units"] == 12 for cell in cells)
    assert all(0 < cell["masking_ms"] < 50 for cell in cells)
    assert any(cell["pareto"] for cell in cells)
    table = pq.read_table(done / "results.parquet").to_pylist()
    assert [row["bias_change"] for row in table] == [cell["bias_change"] for cell in cells]


def test_parts_share_the_cells_of_one_folder(tmp_path: Path, grid: dict[str, Any], given: dict[str, Any]) -> None:
    grid = {**grid, "bias": "variance", "operator": "zero", "budget": ["6n", "12n"], "controls": []}
    with pytest.raises(UserError, match="part 0 runs it"):
        ablate(grid, tmp_path / "a", part=(1, 2), **given)
    assert ablate(grid, tmp_path / "a", part=(0, 2), **given) is None
    record = ablate(grid, tmp_path / "a", part=(1, 2), **given)
    assert record is not None
    assert [cell["units"] for cell in record["cells"]] == [6, 12]


def test_nothing_is_written_for_a_bad_grid(
    case: Planted, fairprune: Callable[..., Any], llama: Path, prompts: Path, tmp_path: Path, grid: dict[str, Any]
) -> None:
    path = tmp_path / "grid.yaml"
    for text, expected in (
        ("bias: [variance, variance]\n", "duplicate cell"),
        ("operator: scale\n", "needs its factor"),
        ("budget: [0.1\n", "is no YAML"),
        ("protected_layers: [9]\nbudget: 3n\n", "names layer 9"),
    ):
        path.write_text(text)
        answer = fairprune("ablate", path, "--model", llama, "--prompts", prompts, "--output", tmp_path / "out")
        assert (answer.code, len(answer.errors)) == (2, 1), answer.err
        assert expected in answer.err
        assert not (tmp_path / "out").exists()
    assert "needs a folder" in fairprune("ablate", path).err
    assert "--part must be" in fairprune("ablate", path, "--output", tmp_path / "out", "--part", "2").err
    assert "no grid" in fairprune("ablate", tmp_path / "nothing.yaml", "--output", tmp_path / "out").err
    one = [c for c in case.contrasts if c.template_id == "t0"]
    with pytest.raises(UserError, match="too few templates"):
        ablate(grid, tmp_path / "out", model=case.model, tokenizer=case.tokenizer, prompts=one)


def test_a_preference_needs_stereotypes(tmp_path: Path, grid: dict[str, Any], given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="select has none"):
        ablate({**grid, "judge": "stereotype-preference"}, tmp_path / "grid", **given)
    assert not (tmp_path / "grid").exists()
