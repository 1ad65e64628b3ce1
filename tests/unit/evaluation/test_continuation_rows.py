"""Rows of sampled continuations against scipy's Wasserstein distance and shares by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from statsmodels.stats.multitest import multipletests

from fairprune_framework.evaluation.continuation_rows import continuation_rows
from fairprune_framework.evaluation.rows import ResultRow

GROUPS = ("Muslim", "Christian", "Hindu")


def items(shift: float = 0.0, before_shift: float = 0.4, n: int = 24, after: bool = True) -> list[dict[str, Any]]:
    """`shift` of the first group after, `before_shift` before; the last items lack one group; half of them are controls."""
    rng = np.random.default_rng(2)

    def drawn(off: float, names: tuple[str, ...]) -> list[list[float]]:
        return [np.clip(rng.normal(-off if name == "Muslim" else 0.0, 0.4, 16), -1, 1).tolist() for name in names]

    found = []
    for i in range(2 * n):
        control = i >= n
        names = GROUPS if i % n < n - 4 else GROUPS[:2]
        found.append(
            {
                "category": "hobby" if control else "religion",
                "template_id": f"t{i}",
                "split": "heldout",
                "control": control,
                "attributes": list(names),
                "sentiment_before": drawn(0.0 if control else before_shift, names),
                "sentiment_after": drawn(0.0 if control else shift, names) if after else None,
            }
        )
    return [*found, {**found[0], "sentiment_before": None, "sentiment_after": None}]


def by_name(rows: list[ResultRow]) -> dict[tuple[str, str | None], ResultRow]:
    return {(row.metric, row.category): row for row in rows}


def pooled(given: list[dict[str, Any]], when: str) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, list[float]] = {name: [] for name in GROUPS}
    for item in given:
        if item["category"] == "religion" and item["sentiment_before"]:
            for name, values in zip(item["attributes"], item[f"sentiment_{when}"], strict=True):
                found[name] += values
    return {name: np.array(values) for name, values in found.items()}


def test_distances_are_those_of_scipy_and_shares_those_of_a_count() -> None:
    given = items()
    rows = by_name(continuation_rows(given, 0))
    for when in ("before", "after"):
        groups = pooled(given, when)
        together = np.concatenate(list(groups.values()))
        expected = np.mean([wasserstein_distance(values, together) for values in groups.values()])
        assert getattr(rows["sentiment-distance", "religion"], when) == pytest.approx(expected, rel=0.01)
        shares = {name: float((values < -0.5).mean()) for name, values in groups.items()}
        for name, share in shares.items():
            assert getattr(rows["negative-share-of-group", f"religion: {name}"], when) == pytest.approx(share)
        gap = getattr(rows["negative-share-gap", "religion"], when)
        assert gap == pytest.approx(max(shares.values()) - min(shares.values()))
    assert rows["negative-share-of-group", "religion: Hindu"].n == 20
    assert ("sentiment-distance", None) not in rows


def test_a_distance_that_closes_is_told_beside_a_control_that_stands_still() -> None:
    rows = by_name(continuation_rows(items(), 0))
    for metric in ("sentiment-distance", "negative-share-gap"):
        row = rows[metric, "religion"]
        assert row.difference_high is not None
        assert row.difference_high < 0
    control = rows["sentiment-distance", "hobby"]
    assert control.control
    assert control.difference_low is not None
    assert control.difference_high is not None
    assert control.difference_low < 0 < control.difference_high


def test_nothing_changed_is_exactly_nothing_and_one_model_stands_alone() -> None:
    same = [{**item, "sentiment_after": item["sentiment_before"]} for item in items()]
    row = by_name(continuation_rows(same, 0))["sentiment-distance", "religion"]
    assert (row.difference, row.p_value) == (0.0, 1.0)
    alone = by_name(continuation_rows(items(after=False), 0))["negative-share-gap", "religion"]
    assert alone.after is None
    assert "above 0 by chance" in str(alone.note)


def test_harm_is_not_corrected_and_distances_are() -> None:
    two = items()
    for item in items(shift=0.2):
        if not item["control"]:
            two.append({**item, "category": "age"})
    rows = by_name(continuation_rows(two, 0))
    tested = [rows["sentiment-distance", name] for name in ("age", "religion")]
    expected = multipletests([row.p_value for row in tested], method="holm")[1]
    assert [row.p_adjusted for row in tested] == pytest.approx(list(expected))
    assert rows["negative-share-of-group", "religion: Muslim"].p_adjusted is None
    assert continuation_rows([], 0) == []
