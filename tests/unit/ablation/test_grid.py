"""Grid files: what they expand to, and what is refused before anything runs; the Pareto front by brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairprune_framework.ablation.board import completed, pareto, ranked
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
        ({"operator": ["zero", "remove"]}, "remove and zero are the same while neurons are masked"),
        ({"operator": ["scale"]}, "impossible cell in the grid: the operator scale needs its factor"),
        ({"operator": [{"operator": "scale", "factor": 1}]}, "impossible cell in the grid: The 'factor'"),
        ({"operator": [{"operator": "zero", "factor": 0.5}]}, "takes no factor"),
        ({"operator": [{"operator": "scale", "by": 0.5}]}, "Got the key 'by'"),
        ({"factor": 0.5}, "A factor stands with its operator"),
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
    with pytest.raises(UserError, match="--budget stands in the grid"):
        read_grid(GRID, {"budget": "0.5"})


def row(divergence: float | None, perplexity: float, **more: Any) -> dict[str, Any]:
    base = {"bias_change": divergence, "perplexity_change": perplexity, "units": 3, "control": False, "guard_held": True}
    axes = {"operator": "zero", "factor": None, "budget": "3n", "p_value": 0.01, "cell": "x"}
    return {**base, **axes, **more}


def test_the_front_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows = [row(float(d), float(p)) for d, p in rng.normal(size=(40, 2)).round(1)]
    rows += [row(-9.0, -9.0, control=True), row(-9.0, -9.0, units=0), row(None, 0.0)]
    points = [(r["bias_change"], r["perplexity_change"]) for r in rows[:40]]
    for found, mine in zip(pareto(rows)[:40], points, strict=True):
        beaten = any((a <= mine[0] and b < mine[1]) or (a < mine[0] and b <= mine[1]) for a, b in points)
        assert found is not beaten
    assert pareto(rows)[40:] == [False, False, False]


def test_controls_at_equal_budget_and_holm_over_all_cells() -> None:
    rows = [
        row(-0.4, 0.01, p_value=0.01),
        row(-0.3, 0.2, p_value=0.03, guard_held=False),
        row(-0.1, 0.0, control=True, p_value=0.001),
        row(-0.05, 0.0, control=True),
        row(-0.6, 0.0, control=True, budget="9n"),
    ]
    done = completed(rows)
    assert [each["best_control"] for each in done[:2]] == [-0.1, -0.1]
    assert [each["p_adjusted"] for each in done] == [0.02, 0.03, None, None, None]
    assert [each["bias_change"] for each in ranked(done)] == [-0.4]
