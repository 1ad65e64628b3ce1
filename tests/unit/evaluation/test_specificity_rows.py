"""Rows of demographic contrasts against controls, against ratios by hand and against the statistic that the verdict uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairprune_framework.evaluation.specificity_rows import specificity, specificity_rows


def world(n: int = 40, *, demographic: float = 0.6, control: float = 0.9, after: bool = True) -> list[dict[str, Any]]:
    """Two splits of demographic contrasts, each with a control that stands in its template, and words unseen without controls."""
    rng = np.random.default_rng(7)
    found = []
    for i in range(n):
        for role, factor, category in (("demographic", demographic, f"c{i % 2}"), ("control", control, "weather")):
            divergence, valence = rng.gamma(9, 0.01, 2) * (1.0 if role == "control" else 2.0)
            noise = rng.normal(1, 0.02, 2)
            one = {
                "role": role,
                "category": category,
                "template_id": f"t{i}",
                "neutral_of": f"c{i % 2}/t{i}" if role == "control" else None,
                "split": "heldout" if i % 4 < 2 else "select",
                "next-token-divergence_before": divergence,
                "next-token-divergence_after": divergence * factor * noise[0] if after else None,
                "valence-gap_before": valence,
                "valence-gap_after": valence * factor**0.5 * noise[1] if after else None,
            }
            found.append(one)
            if role == "demographic":
                found.append(one | {"split": "heldout-words"})
    return found


def mean(items: list[dict[str, Any]], role: str, split: str, column: str) -> float:
    chosen = [one for one in items if (one["role"], one["split"]) == (role, split)]
    by_category = {one["category"] for one in chosen}
    return float(np.mean([np.mean([one[column] for one in chosen if one["category"] == name]) for name in by_category]))


def test_a_row_is_the_ratio_of_the_means_and_changes_by_the_ratio_of_ratios() -> None:
    items = world()
    rows = specificity_rows(items, seed=0)
    assert [(row.metric, row.split) for row in rows] == [
        (f"{metric}-to-controls", split)
        for split in ("heldout", "select")
        for metric in ("next-token-divergence", "valence-gap")
    ]
    for row in rows:
        column = row.metric.removesuffix("-to-controls")
        before, after = (
            mean(items, "demographic", str(row.split), f"{column}_{when}")
            / mean(items, "control", str(row.split), f"{column}_{when}")
            for when in ("before", "after")
        )
        assert (row.before, row.after) == (pytest.approx(before), pytest.approx(after))
        assert row.change == pytest.approx(after / before - 1)
        assert row.difference == pytest.approx(after - before)
        assert row.ci_low is not None
        assert row.ci_high is not None
        assert row.ci_low < row.change < row.ci_high < 0  # type: ignore[operator]
        assert (row.n, row.clusters, row.unit, row.ideal) == (40, 20, "ratio", 0.0)


def test_the_row_of_the_divergence_is_what_the_verdict_rests_on() -> None:
    items = [one for one in world() if one["split"] == "heldout"]
    own, controls = ([one for one in items if one["role"] == role] for role in ("demographic", "control"))
    asked = specificity(own, controls, 3)
    assert asked is not None
    row = specificity_rows(items, seed=3)[0]
    assert asked.ratio_of_ratios.ci_high is not None
    assert row.change == asked.ratio_of_ratios.ratio - 1  # type: ignore[operator]
    assert row.ci_high == asked.ratio_of_ratios.ci_high - 1
    assert row.p_value == asked.ratio_of_ratios.p_value


def test_what_falls_alike_is_not_clear_of_zero() -> None:
    row = specificity_rows(world(demographic=0.6, control=0.6), seed=0)[0]
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < 0 < row.ci_high


def test_one_model_has_a_ratio_and_no_change() -> None:
    items = world(after=False)
    for row in specificity_rows(items, seed=0):
        column = f"{row.metric.removesuffix('-to-controls')}_before"
        expected = mean(items, "demographic", str(row.split), column) / mean(items, "control", str(row.split), column)
        assert row.before == pytest.approx(expected)
        assert row.after is row.change is row.ci_low is row.p_value is row.note is None


def test_controls_that_do_not_move_leave_no_row() -> None:
    items = [one | ({"valence-gap_before": 0.0} if one["role"] == "control" else {}) for one in world()]
    assert {row.metric for row in specificity_rows(items, seed=0)} == {"next-token-divergence-to-controls"}


def test_few_templates_have_no_interval_and_say_so() -> None:
    for row in specificity_rows(world(12), seed=0):
        assert row.change is not None
        assert row.ci_low is row.p_value is None
        assert "too few" in str(row.note)
