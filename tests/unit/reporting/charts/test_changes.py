"""Charts of changes against rows of an evaluation made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.reporting.charts.changes import (
    activation_by_layer,
    benchmark_label,
    benchmark_rows,
    change_by_category,
    retention,
)
from fairprune_framework.reporting.run_data import Source

DIVERGENCE, ACTIVATION = "next-token-divergence", "activation-difference"


def row(metric: str, change: float | None = -0.1, **more: Any) -> dict[str, Any]:
    values = {"split": "heldout", "control": False, "category": None, "layer": None, "before": 2.0, "n": 7, "p_value": 0.03}
    after = None if change is None else 2.0 * (1 + change)
    bounds = {"ci_low": None if change is None else change - 0.1, "ci_high": None if change is None else change + 0.2}
    return {"metric": metric, **values, "after": after, "change": change, **bounds, **more}


def source(*rows: dict[str, Any]) -> Source:
    return Source(folder=Path("x"), rows=rows)


BY_CATEGORY = [
    row(DIVERGENCE, -0.3),
    row(DIVERGENCE, -0.5, category="race"),
    row(DIVERGENCE, 0.1, category="age"),
    row(DIVERGENCE, 0.02, control=True),
    row(DIVERGENCE, 0.01, control=True, category="stature"),
    row(DIVERGENCE, -0.9, split="select"),
    row(ACTIVATION, -0.2),
    row(ACTIVATION, -0.25, category="race"),
    row("perplexity", 0.4, split=None),
    row(DIVERGENCE, None, category="none"),
]


def test_changes_of_the_judged_split_from_controls_up_to_all() -> None:
    found = change_by_category(source(*BY_CATEGORY))
    assert found is not None
    controls, categories, left, right = found.drawn()[0]
    assert list(zip(categories["y"], categories["x"], strict=True)) == [("age", 0.1), ("race", -0.5), ("all categories", -0.3)]
    assert list(zip(controls["y"], controls["x"], strict=True)) == [("stature (control)", 0.01), ("all controls", 0.02)]
    assert categories["error_x"]["array"] == pytest.approx([0.2] * 3)
    assert categories["error_x"]["arrayminus"] == pytest.approx([0.1] * 3)
    assert left["x"] == right["x"] == []
    assert found.controls[0].options == [DIVERGENCE, ACTIVATION]
    other = found.drawn(1)[0][1]
    assert list(zip(other["y"], other["x"], strict=True)) == [("race", -0.25), ("all categories", -0.2)]
    assert [line[:2] for line in found.table.rows] == [
        *([DIVERGENCE, name] for name in ("all categories", "race", "age", "all controls", "stature (control)")),
        *([ACTIVATION, name] for name in ("all categories", "race")),
    ]


def test_without_a_heldout_split_the_selecting_one_is_shown_and_named() -> None:
    found = change_by_category(source(row(DIVERGENCE, -0.9, split="select")))
    assert found is not None
    assert "the contrasts of the selection itself" in found.caption
    assert change_by_category(source(row(DIVERGENCE, None))) is None
    assert change_by_category(source(row("boolq/acc"))) is None


@pytest.mark.parametrize("after", [True, False])
def test_lines_by_layer(after: bool) -> None:
    change = -0.2 if after else None
    rows = [row(ACTIVATION, change, layer=i, before=1.0 + i, after=0.5 + i if after else None) for i in range(3)]
    rows += [row(ACTIVATION, change, layer=i, before=9.0, after=8.0 if after else None, category="race") for i in range(3)]
    rows += [row(ACTIVATION, change, layer=i, before=0.1, after=0.2 if after else None, control=True) for i in range(3)]
    found = activation_by_layer(source(row(DIVERGENCE), *rows))
    assert found is not None
    traces = {trace["name"]: trace for trace in found.drawn()[0]}
    assert traces["before"]["y"] == [1.0, 2.0, 3.0]
    assert traces["controls, before"]["y"] == [0.1] * 3
    assert set(traces) == {"before", "controls, before"} | (
        {"after", "change", "controls, after", "controls, change"} if after else set()
    )
    if after:
        assert traces["after"]["y"] == [0.5, 1.5, 2.5]
        assert traces["change"]["y"] == [-0.2] * 3
    chosen = found.controls[0].options.index("race")
    assert found.drawn(chosen)[0][0]["y"] == [9.0] * 3
    assert activation_by_layer(source(row(DIVERGENCE), row(ACTIVATION))) is None


def test_benchmarks_are_what_is_no_contrast_and_no_language_metric() -> None:
    rows = [
        row("boolq/acc", 0.1, split=None),
        row("boolq/acc", 0.1, split=None, category="x"),
        row("winobias/sequence-gap", -0.1),
        row("boolq/acc", None, split=None),
        row("perplexity"),
        row("kl-to-original"),
        row(DIVERGENCE),
        row(ACTIVATION, layer=3),
    ]
    found = benchmark_rows(source(*rows))
    assert [benchmark_label(each) for each in found] == [
        "boolq/acc",
        "boolq/acc, x",
        "winobias/sequence-gap, heldout",
        "boolq/acc",
    ]
    chart = retention(source(*rows))
    assert chart is not None
    before, after = chart.data
    assert before["y"] == after["y"] == ["boolq/acc", "boolq/acc, x", "winobias/sequence-gap, heldout"]
    assert before["x"] == [2.0] * 3
    assert after["x"] == pytest.approx([2.2, 2.2, 1.8])
    assert chart.table.rows[0] == ["boolq/acc", "2", "2.2", "+10.0\u00a0%", "+0.0\u00a0% to +30.0\u00a0%", "0.03", "7"]
    assert retention(source(row(DIVERGENCE), row("boolq/acc", None))) is None
