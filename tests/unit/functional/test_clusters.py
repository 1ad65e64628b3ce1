"""Cluster means and macro weights against plain loops over dictionaries."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.functional.clusters import cluster_means, effective_clusters, span_of_ratios

ROWS = st.lists(
    st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=30
)


@given(ROWS, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_macro_means_by_dictionaries_in_any_order(rows: list[tuple[float, float, str, str]], chance: object) -> None:
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for before, after, category, cluster in rows:
        groups.setdefault(category, {}).setdefault(cluster, []).append((before, after))
    expected = [
        fmean(fmean(fmean(pair[side] for pair in pairs) for pairs in found.values()) for found in groups.values())
        for side in (0, 1)
    ]
    found = cluster_means("f", *zip(*rows, strict=True))  # type: ignore[arg-type]
    assert found.weight_N.sum() == pytest.approx(1)
    assert (found.weight_N @ found.before_N, found.weight_N @ found.after_N) == pytest.approx(tuple(expected), abs=1e-12)
    for row, (_, _, category, cluster) in enumerate(rows):
        n = found.cluster_C[row]
        assert found.before_N[n] == pytest.approx(fmean(b for b, _ in groups[category][cluster]), abs=1e-12)
        assert found.category_N[n] == sorted(groups).index(category)
    shuffled = chance.sample(rows, len(rows))  # type: ignore[attr-defined]
    again = cluster_means("f", *zip(*shuffled, strict=True))  # type: ignore[arg-type]
    assert again.before_N.tobytes() == found.before_N.tobytes()
    assert again.after_N.tobytes() == found.after_N.tobytes()


def test_one_label_in_two_categories_is_two_clusters() -> None:
    found = cluster_means("f", [1.0, 2.0, 3.0], [0.0] * 3, ["a", "b", "b"], [7, 7, 8])
    assert found.before_N.tolist() == [1.0, 2.0, 3.0]
    assert found.weight_N.tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("before", "after", "labels", "words"),
    [
        ([1.0], [1.0, 2.0], 1, "must have one entry per contrast"),
        ([], [], 0, "at least one"),
        ([[1.0]], [1.0], 1, "The 'before' of f must be one value per contrast. Got shape (1, 1)"),
        ([1.0, 2.0], [1.0, math.nan], 2, "The 'after' of f must be finite. Got nan at index 1 (1 of 2 values)"),
        ([math.inf, 2.0], [1.0, 1.0], 2, "The 'before' of f must be finite"),
    ],
)
def test_what_is_refused(before: list[float], after: list[float], labels: int, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        cluster_means("f", before, after, ["a"] * labels, ["x"] * labels)
    assert words in str(caught.value)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20))
def test_kish_is_between_one_and_all(shares: list[float]) -> None:
    values = np.array(shares)
    found = effective_clusters(values)
    assert 1 - 1e-9 <= found <= len(shares) + 1e-9
    assert found == pytest.approx(effective_clusters(-3 * values))
    assert effective_clusters(np.r_[values, 0.0]) == pytest.approx(found)


def test_nobody_has_a_share() -> None:
    assert effective_clusters(np.zeros(4)) == 0.0


def test_a_ratio_of_means_lies_in_the_span_of_the_ratios() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        before, after = rng.gamma(2, 1, (2, 12))
        weight = rng.dirichlet(np.ones(12))
        logs = np.log(after / before)
        assert span_of_ratios(before, after) == pytest.approx(logs.max() - logs.min())
        assert logs.min() <= np.log(weight @ after / (weight @ before)) <= logs.max()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.0, 1.0, 1.0], [0.0, 2.0, 4.0], math.log(2)),  # 0 before and after carries nothing
        ([0.0, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [1.0, -1.0], math.inf),
        ([0.0], [0.0], math.inf),
    ],
)
def test_spans_without_a_logarithm(before: list[float], after: list[float], expected: float) -> None:
    assert span_of_ratios(np.array(before), np.array(after)) == pytest.approx(expected)
