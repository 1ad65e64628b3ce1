"""Rows carry the numbers of the pure functions, and become JSON that every parser reads."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from fairprune_framework.evaluation.rows import ResultRow, RowKey, with_holm
from fairprune_framework.functional.bootstrap import change_of
from fairprune_framework.functional.paired_bootstrap import paired_change

KEY = RowKey(metric="m", unit="nats", ideal=0.0, split="heldout", category="age", layer=None)


def means(clusters: int) -> dict[str, list[float] | list[str]]:
    before = np.random.default_rng(0).uniform(1, 2, clusters)
    return {"before": list(before), "after": list(before * 0.5), "names": [f"T{i}" for i in range(clusters)]}


def test_a_row_alone_has_nothing_of_after() -> None:
    row = ResultRow.alone(KEY, 0.5, n=7, clusters=3, note="why")
    assert (row.metric, row.unit, row.split, row.category, row.before, row.n, row.clusters, row.note) == (
        "m", "nats", "heldout", "age", 0.5, 7, 3, "why"
    )  # fmt: skip
    known = {"metric", "unit", "ideal", "split", "control", "category", "before", "n", "clusters", "note"}
    assert all(getattr(row, field.name) is None for field in fields(row) if field.name not in known)


@pytest.mark.parametrize("clusters", [5, 12])
def test_a_change_of_means(clusters: int) -> None:
    m = means(clusters)
    after = [value + 0.01 * i for i, value in enumerate(m["after"])]
    change = paired_change(m["before"], after, ["age"] * clusters, m["names"])
    row = ResultRow.of_change(KEY, change)
    assert (row.before, row.after, row.difference, row.change) == (
        change.before,
        change.after,
        change.difference,
        change.change,
    )
    assert (row.ci_low, row.ci_high, row.p_value, row.standard_error) == (
        change.ci_low, change.ci_high, change.p_value, change.standard_error
    )  # fmt: skip
    assert change.standard_error is not None
    assert row.detectable == pytest.approx(2.8 * change.standard_error * change.before)
    assert row.note == ("5 templates are too few for an interval; 8 are needed" if clusters == 5 else None)


@pytest.mark.parametrize("clusters", [5, 40])
def test_a_change_of_a_statistic(clusters: int) -> None:
    rng = np.random.default_rng(1)
    before, after = (np.stack([rng.integers(0, 2, clusters), np.ones(clusters)], 1) for _ in range(2))
    change = change_of(before, after, range(clusters), ideal=0.0)
    row = ResultRow.of_change(KEY, change, clusters_are="documents")
    assert (row.before, row.after, row.n, row.clusters) == (before[:, 0].mean(), after[:, 0].mean(), clusters, clusters)
    assert row.difference == pytest.approx(after[:, 0].mean() - before[:, 0].mean())
    assert (row.difference_low, row.difference_high, row.p_value) == (
        change.difference.low, change.difference.high, change.difference.p_value
    )  # fmt: skip
    assert change.change is not None
    assert (row.change, row.ci_low, row.ci_high) == (change.change.value, change.change.low, change.change.high)
    assert row.detectable == change.detectable
    assert row.note == ("5 documents are too few for an interval; 8 are needed" if clusters == 5 else None)


def test_holm_over_the_rows_that_were_tested() -> None:
    tested = [0.01, 0.04, 0.03, 0.2]
    rows = [replace(ResultRow.alone(KEY, 1.0, n=1), p_value=p) for p in tested]
    rows.insert(2, ResultRow.alone(KEY, 1.0, n=1))
    adjusted = [row.p_adjusted for row in with_holm(rows)]
    assert adjusted.pop(2) is None
    np.testing.assert_allclose(np.array(adjusted, dtype=float), multipletests(tested, method="holm")[1])


def test_notes_are_joined() -> None:
    row = ResultRow.alone(KEY, 1.0, n=1)
    assert row.noted(None, "").note is None
    assert row.noted("a").noted(None, "b").note == "a; b"


def test_json_has_no_infinity_and_comes_back() -> None:
    row = replace(ResultRow.alone(KEY, math.inf, n=3), after=1.5, difference=-math.inf, difference_low=math.nan)
    text = json.dumps(row.to_json(), allow_nan=False)
    assert ResultRow.from_json(json.loads(text)) == replace(row, before=None, difference=None, difference_low=None)


def test_a_change_that_is_not_estimable_says_why() -> None:
    """One template of ten carries nearly all of the mean, and it alone rises."""
    before = [1.0] * 9 + [60.0]
    after = [0.4 + 0.05 * i for i in range(9)] + [90.0]
    change = paired_change(before, after, ["age"] * 10, [f"T{i}" for i in range(10)])
    assert change.not_estimable is not None
    assert ResultRow.of_change(KEY, change).note == change.not_estimable


@pytest.mark.parametrize(("bound", "kept"), [(0.9, True), (1.0, True), (1.2, False)])
def test_an_interval_wider_than_the_score_is_not_estimable(bound: float, kept: bool) -> None:
    key = RowKey(metric="share", unit="share", ideal=0.5)
    row = replace(
        ResultRow.alone(key, 0.6, n=9), after=0.7, difference=0.1, difference_low=-0.3, difference_high=bound, p_value=0.1
    )
    found = row.within(1.0)
    assert (found.difference_high, found.p_value) == ((bound, 0.1) if kept else (None, None))
    assert ("not estimable" in str(found.note)) is not kept
    assert (found.difference, found.after) == (0.1, 0.7)
    assert row.within(None) == row
