"""Change by category: the axis follows intervals that can be estimated, an arrow names the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairprune_framework.reporting.charts.changes import change_by_category
from fairprune_framework.reporting.run_data import Source
from fairprune_framework.reporting.static import drawn


def _row(category: str | None, change: float, low: float | None, high: float | None, control: bool = False) -> dict[str, Any]:
    fixed = {"metric": "next-token-divergence", "split": "heldout", "layer": None, "before": 0.03, "after": 0.02, "n": 10}
    return {**fixed, "category": category, "control": control, "change": change, "ci_low": low, "ci_high": high}


ROWS = (
    _row(None, -0.52, -0.63, -0.39),
    _row("age", -0.60, -0.72, -0.41),
    _row("race-ethnicity", -0.089, -1.0, 241.02),
    _row("religion", -0.3, None, None),
    _row(None, -0.40, -0.54, 0.10, control=True),
)


def test_an_interval_that_cannot_be_estimated_is_an_arrow_with_its_number() -> None:
    chart = change_by_category(Source(folder=Path("run"), rows=ROWS))
    assert chart is not None
    controls, categories, left, right = chart.data
    for trace in (controls, categories):
        for x, high, low in zip(trace["x"], trace["error_x"]["array"], trace["error_x"]["arrayminus"], strict=True):
            assert -0.72 - 1e-12 <= x - low <= x <= x + high <= 0.10 + 1e-12
    assert (left["y"], left["x"], left["text"]) == (["race-ethnicity"], [-0.72], ["to −100\u00a0%"])
    assert (right["y"], right["x"], right["text"]) == (["race-ethnicity"], [0.10], ["to +24,102\u00a0%"])
    assert [line[5] for line in chart.table.rows if line[1] == "race-ethnicity"] == ["−100.0\u00a0% to +24,102.0\u00a0%"]


def test_the_axis_of_a_figure_for_papers_follows_the_other_intervals() -> None:
    chart = change_by_category(Source(folder=Path("run"), rows=ROWS))
    assert chart is not None
    low, high = drawn(chart).axes[0].get_xlim()
    assert -1 < low < -0.72
    assert 0.10 < high < 0.5


def test_intervals_within_the_axis_have_no_arrow() -> None:
    chart = change_by_category(Source(folder=Path("run"), rows=[row for row in ROWS if row["category"] != "race-ethnicity"]))
    assert chart is not None
    assert [trace["x"] for trace in chart.data[2:]] == [[], []]
