"""Stability and causal charts against the files that they were drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.reporting.charts import questions
from fairprune_framework.reporting.charts.questions import causal, stability
from fairprune_framework.reporting.run_data import Source


def source(**more: Any) -> Source:
    return Source(folder=Path("x"), more=more)


UNITS = [{"site": "layers.0.mlp", "unit": i, "frequency": 1 - i / 10, "planned": i % 3 == 0} for i in range(8)]
STABILITY = {
    "replicates": 40,
    "stable_75": 2,
    "planned": 3,
    "mean_jaccard": 0.456,
    "mean_frequency": 0.7,
    "units_ever_chosen": 30,
    "units": UNITS,
}


def test_each_neuron_is_one_bar_at_its_place() -> None:
    found = stability(source(stability=STABILITY))
    assert found is not None
    planned, others = found.data
    assert list(zip(planned["x"], planned["y"], strict=True)) == [(1, 1.0), (4, 0.7), (7, pytest.approx(0.4))]
    assert sorted(planned["x"] + others["x"]) == list(range(1, 9))
    assert found.table.rows[3] == ["layers.0.mlp:3", "70%", "yes"]
    assert found.table.note == "8 of 30 neurons selected at least once."
    assert "drawn with replacement 40 times" in found.caption
    assert "0.46 of their neurons" in found.caption


def test_only_the_most_frequent_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SHOWN", 5)
    found = stability(source(stability=STABILITY))
    assert found is not None
    assert sum(len(trace["x"]) for trace in found.data) == len(found.table.rows) == 5


def effect(change: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"change": change, "ci_low": low, "ci_high": high}


def causes(**more: Any) -> dict[str, Any]:
    values = {"split": "heldout", "units": 9, "p_value": 0.047, "demographic": effect(-0.5, -0.6, -0.3)}
    return {**values, "control": effect(-0.1), "random": [effect(-0.02), effect(None), effect(0.04)], **more}


def test_the_plan_beside_random_neurons() -> None:
    found = causal(source(causal=causes()))
    assert found is not None
    random, plan, control = found.data
    assert random["x"] == [-0.02, 0.04]
    assert (plan["x"], plan["error_x"]["array"], plan["error_x"]["arrayminus"]) == (
        [-0.5],
        pytest.approx([0.2]),
        pytest.approx([0.1]),
    )
    assert control["x"] == [-0.1]
    assert "error_x" not in control
    assert [row[1] for row in found.table.rows] == ["−50.0\u00a0%", "−10.0\u00a0%", "−2.0\u00a0%", "+4.0\u00a0%"]
    assert "p = 0.047" in found.caption
    assert "2 draws of random neurons" in found.caption


def test_what_was_not_measured_is_left_out() -> None:
    found = causal(source(causal=causes(control=None, random=[])))
    assert found is not None
    assert [trace["name"] for trace in found.data] == ["random neurons", "the plan, demographic contrasts"]
    found = causal(source(causal=causes(control=effect(None))))
    assert found is not None
    assert len(found.data) == 2


def test_no_chart_without_the_file() -> None:
    assert stability(source()) is None
    assert stability(source(stability={**STABILITY, "units": []})) is None
    assert causal(source()) is None
