"""Grid files: what they expand to, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.ablation.grid import read_grid
from fairprune_framework.errors import UserError

GRID: dict[str, Any] = {
    "bias": ["variance", {"plugin": "attribution", "objective": "sentence"}],
    "importance": "taylor",
    "policy": ["protected-global", {"plugin": "protected-global", "protect": 0.3}],
    "operator": ["zero", {"operator": "scale", "factor": 0.5}],
    "budget": ["0.01", "4/layer"],
    "controls": ["random", {"plugin": "random", "matched": True}],
    "control_seeds": 2,
    "max_perplexity_increase": 0.02,
}


def test_every_combination_and_every_control_is_a_cell(tmp_path: Path) -> None:
    grid = read_grid(GRID)
    assert len(grid.cells) == 2 * 1 * 2 * 2 * 2 + 2 * 2 * 2 * 2
    assert sum(cell.control for cell in grid.cells) == 16
    assert len({cell.id for cell in grid.cells}) == len(grid.cells)
    assert {cell.recipe.max_perplexity_increase for cell in grid.cells} == {0.02}
    assert {(cell.recipe.operator, cell.recipe.factor) for cell in grid.cells} == {("zero", None), ("scale", "0.5")}
    grown = read_grid({**GRID, "budget": ["0.01", "4/layer", "9n"]})
    assert {cell.id for cell in grid.cells} < {cell.id for cell in grown.cells}
    assert grid.key == grown.key != read_grid({**GRID, "max_perplexity_increase": 0.03}).key


def test_axes_that_are_absent_have_the_recipes_value(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("recipe: attribution\nbudget: [5n, 6n]\n")
    cells = read_grid(path).cells
    assert [cell.recipe.budget for cell in cells] == ["5n", "6n"]
    assert cells[0].recipe.bias is not None
    assert cells[0].recipe.bias.plugin == "attribution"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bias": ["variance", "variance"]}, "duplicate cell in the grid: bias variance"),
        ({"bias": ["variance", {"plugin": "variance", "relative": False}]}, "duplicate cell"),
        ({"operator": ["zero", "remove"]}, "remove and zero are identical under masking"),
        ({"operator": ["scale"]}, "impossible cell in the grid: the operator scale needs its factor"),
        ({"operator": [{"operator": "scale", "factor": 1}]}, "impossible cell in the grid: The 'factor'"),
        ({"operator": [{"operator": "zero", "factor": 0.5}]}, "takes no factor"),
        ({"operator": [{"operator": "scale", "by": 0.5}]}, "Got the key 'by'"),
        ({"factor": 0.5}, "A factor belongs to its operator"),
        ({"bias": ["varience"]}, "Did you mean 'variance'?"),
        ({"policy": [{"plugin": "protected-global", "protekt": 0.1}]}, "Did you mean 'protect'?"),
        ({"policy": [{"plugin": "protected-global", "protect": 2}]}, "must be in [0, 1)"),
        ({"policy": ["greedy"], "operator": [{"operator": "scale", "factor": "auto"}]}, "needs a number as factor, not auto"),
        ({"budget": ["20"]}, "must be in (0, 1)"),
        ({"budget": []}, "the axis 'budget' of the grid is empty"),
        ({"buget": ["0.1"]}, "has no key 'buget'. Did you mean 'budget'?"),
        ({"controls": ["randon"]}, "Did you mean 'random'?"),
        ({"control_seeds": 0}, "at least 1"),
        ({"judge": "stereotype-preferences"}, "Did you mean 'stereotype-preference'?"),
        ({"seed": [-1]}, "'seed'"),
    ],
)
def test_bad_grids(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_grid({**GRID, **change})
    assert expected in " ".join(str(caught.value).split())


def test_options_may_not_name_an_axis_of_the_grid() -> None:
    assert read_grid(GRID, {"model": "m"}).recipe.model == "m"
    with pytest.raises(UserError, match="--budget is already set in the grid"):
        read_grid(GRID, {"budget": "0.5"})
