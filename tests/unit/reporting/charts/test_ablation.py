"""The Pareto chart against the cells that it was drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.reporting.charts.ablation import pareto
from fairprune_framework.reporting.run_data import Source


def cell(bias: str, change: float | None, cost: float | None, **more: Any) -> dict[str, Any]:
    bounds = {} if change is None else {"ci_low": change - 0.1, "ci_high": change + 0.3}
    names = {"bias": bias, "importance": "taylor", "policy": "uniform", "operator": "zero", "budget": "3n", "units": 3}
    return {**names, "bias_change": change, "perplexity_change": cost, **bounds, **more}


CELLS = [
    cell("variance", -0.1, 0.01, pareto=True, guard_held=True),
    cell("attribution", -0.4, 0.05, pareto=True, guard_held=False),
    cell("variance", -0.2, 0.09),
    cell("random", 0.02, 0.0, control=True, seed=4),
    cell("variance", None, 0.2),
    {"cell": "failed"},
]


def chart(cells: Any, **more: Any) -> Any:
    return pareto(Source(folder=Path("x"), ablation={"cells": cells, **more}))


def test_every_cell_with_a_result_is_one_mark() -> None:
    traces = {trace["name"]: trace for trace in chart(CELLS).data}
    assert {name: list(zip(t["x"], t["y"], strict=True)) for name, t in traces.items()} == {
        "random controls": [(0.0, 0.02)],
        "variance": [(0.01, -0.1), (0.09, -0.2)],
        "attribution": [(0.05, -0.4)],
        "Pareto front": [(0.01, -0.1), (0.05, -0.4)],
    }
    assert traces["variance"]["error_y"]["array"] == pytest.approx([0.3, 0.3])
    assert traces["variance"]["error_y"]["arrayminus"] == pytest.approx([0.1, 0.1])


def test_the_front_is_drawn_by_cost_whatever_the_order_of_the_cells() -> None:
    front = chart(CELLS[::-1]).data[-1]
    assert front["x"] == sorted(front["x"]) == [0.01, 0.05]


def test_the_table_lists_the_best_first_and_counts_what_is_left_out() -> None:
    table = chart(CELLS).table
    assert [row[5] for row in table.rows] == ["+5.0\u00a0%", "+9.0\u00a0%", "+1.0\u00a0%", "+0.0\u00a0%"]
    assert [row[-2:] for row in table.rows] == [["yes", "failed"], ["", "–"], ["yes", "held"], ["", "–"]]
    assert table.rows[-1][0] == "random · taylor · uniform · zero · seed 4"
    assert table.note.startswith("2 combinations")
    assert chart(CELLS[:2]).table.note == ""


def test_a_cell_without_an_interval_has_no_bar() -> None:
    bare = {**cell("variance", -0.1, 0.01), "ci_low": None, "ci_high": None}
    errors = chart([bare]).data[1]["error_y"]
    assert (errors["array"], errors["arrayminus"]) == ([0.0], [0.0])


def test_the_metric_that_judged_names_the_axis() -> None:
    assert "stereotype preference" in chart(CELLS, judged_by="stereotype-preference").layout["yaxis"]["title"]["text"]


@pytest.mark.parametrize("cells", [[], [{"cell": "failed"}], [cell("variance", None, 0.2)]])
def test_no_chart_without_a_result(cells: Any) -> None:
    assert chart(cells) is None
    assert pareto(Source(folder=Path("x"))) is None


def test_names_of_plugins_stay_text() -> None:
    found = chart([cell("<b>x</b>", -0.1, 0.1)])
    assert "&lt;b&gt;" in found.data[1]["name"]
    assert "<b>" not in found.data[1]["customdata"][0]
