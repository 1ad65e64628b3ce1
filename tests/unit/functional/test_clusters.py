"""Cluster means against pandas' group-by; Kish's number and spans by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.functional.clusters import cluster_means, effective_clusters, span_of_ratios, units_of


def test_cluster_means_are_a_group_by() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "category": rng.choice(["b", "a", "c"], 60),
            "cluster": rng.integers(0, 7, 60),
            "before": rng.uniform(size=60),
            "after": rng.uniform(size=60),
        }
    )
    means = cluster_means("a test", table.before, table.after, list(table.category), list(table.cluster))
    theirs = table.groupby(["category", "cluster"])[["before", "after"]].mean()
    np.testing.assert_allclose(means.before_N, theirs.before)
    np.testing.assert_allclose(means.after_N, theirs.after)
    macro = theirs.groupby("category").mean().mean()
    assert [means.weight_N @ means.before_N, means.weight_N @ means.after_N] == pytest.approx([macro.before, macro.after])
    assert means.weight_N.sum() == pytest.approx(1)
    labels = [theirs.index[i] for i in means.cluster_C]
    assert labels == list(zip(table.category, table.cluster, strict=True))


def test_units_are_clusters_or_what_is_drawn_together() -> None:
    cluster_C = np.array([2, 0, 1, 1, 3, 4])
    assert units_of(cluster_C, [None] * 6).tolist() == [0, 1, 2, 3, 4]
    assert units_of(cluster_C, ["a", None, "b", "b", "a", "b"]).tolist() == [0, 1, 2, 2, 1]  # of clusters 0, 1, 2, 3, 4
    with pytest.raises(ValueError, match="one label per contrast"):
        units_of(cluster_C, ["a", None])
    with pytest.raises(ValueError, match="Got 'a' and None in one"):
        units_of(cluster_C, [None, None, "a", None, None, None])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_effective_clusters_lie_between_one_and_their_number(shares: list[float], scale: float) -> None:
    number = effective_clusters(np.array(shares))
    assert 1 - 1e-9 <= number <= len(shares) + 1e-9
    assert effective_clusters(scale * np.array(shares)) == pytest.approx(number)


def test_effective_clusters_by_hand() -> None:
    assert effective_clusters(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_clusters(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_clusters(np.array([1.0, 0.0, 0.0])) == 1.0
    assert effective_clusters(np.zeros(3)) == 0.0


def test_span_of_ratios_by_hand() -> None:
    before = np.array([1.0, 2.0, 4.0, 0.0])
    assert span_of_ratios(before, np.array([0.5, 1.0, 4.0, 0.0])) == pytest.approx(math.log(2))
    for after in ([0.5, 1.0, 0.0, 0.0], [0.5, 1.0, -1.0, 0.0], [0.5, 1.0, 1.0, 1.0]):
        assert span_of_ratios(before, np.array(after)) == math.inf
    assert span_of_ratios(np.zeros(2), np.zeros(2)) == math.inf
    assert span_of_ratios(np.ones(2), np.zeros(2)) == math.inf  # all fell to 0
    assert span_of_ratios(np.zeros(2), np.ones(2)) == math.inf
    assert span_of_ratios(np.array([2.0, 1.0]), np.array([1.0, 0.25])) == pytest.approx(math.log(2))  # below 1 on both sides


def test_a_label_is_text_and_belongs_to_its_category() -> None:
    means = cluster_means("a test", [1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], [1, "1", 1, 2])
    assert means.before_N.tolist() == [2.0, 5.0, 7.0]
    assert means.after_N.tolist() == [0.0, 1.0, 1.0]
    assert means.weight_N.tolist() == [0.5, 0.25, 0.25]
    assert means.category_N.tolist() == [0, 1, 1]
    assert means.cluster_C.tolist() == [0, 0, 1, 2]
    with pytest.raises(TypeError, match="positional"):
        type(means)(*vars(means).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        means.weight_N = np.ones(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": [[1.0], [2.0]]}, r"The 'before' of a test must be one value per contrast. Got shape \(2, 1\) instead"),
        ({"after": [1.0, math.nan]}, r"The 'after' of a test must be finite. Got nan at index 1 \(1 of 2 values\)"),
        ({"after": [math.inf, math.inf]}, r"Got inf at index 0 \(2 of 2 values\)"),
        ({"clusters": ["T"]}, r"The inputs of a test must have one entry per contrast, at least one.*'clusters': 1"),
        ({"before": [], "after": [], "categories": [], "clusters": []}, r"at least one. Got lengths"),
    ],
)
def test_misuse(change: dict[str, list[object]], message: str) -> None:
    words = {"before": [1.0, 2.0], "after": [1.0, 2.0], "categories": ["c", "c"], "clusters": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        cluster_means("a test", **(words | change))  # type: ignore[arg-type]
