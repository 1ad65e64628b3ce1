"""Means per cluster with macro weights: what every paired interval over templates starts from.

A cluster is (category, template): contrasts from one template share its words, so they are no independent evidence. Cluster c
weighs w_c = 1 / (K n_k), for K categories and n_k clusters in its category k, so that weighted sums are macro means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClusterMeans:
    """N clusters of C contrasts, sorted by (category, cluster) as text."""

    before_N: Floats
    after_N: Floats
    weight_N: Floats
    """Sums to 1."""
    category_N: NDArray[np.intp]
    """Number of the category, in the order of sorted labels."""
    cluster_C: NDArray[np.intp]
    """Which of the N clusters a contrast belongs to, in the order of the input."""


def cluster_means(
    owner: str, before: ArrayLike, after: ArrayLike, categories: Sequence[object], clusters: Sequence[object]
) -> ClusterMeans:
    """Average contrasts within clusters. The order of the input does not matter, to the last bit.

    Args:
        owner: the function that an error names.
        before: `(C,)`, one value per contrast, any unit.
        after: `(C,)`, the same contrasts in the same order.
        categories: `(C,)` labels; compared as text.
        clusters: `(C,)` labels. The same label in two categories makes two clusters.

    Raises:
        ValueError: lengths differ, there is no contrast, or a value is NaN or infinite.
    """
    b, a = _values(owner, "before", before), _values(owner, "after", after)
    lengths = {"before": len(b), "after": len(a), "categories": len(categories), "clusters": len(clusters)}
    if len(set(lengths.values())) != 1 or not len(b):
        raise ValueError(f"The inputs of {owner} must have one entry per contrast, at least one. Got lengths {lengths}.")
    category_C, label_C = (
        np.unique(np.array([str(one) for one in labels]), return_inverse=True)[1] for labels in (categories, clusters)
    )
    # Values are sorted as well, so that sums are added in one order however the rows came.
    order = np.lexsort((a, b, label_C, category_C))
    category_S, label_S = category_C[order], label_C[order]
    new = np.r_[True, (np.diff(category_S) != 0) | (np.diff(label_S) != 0)]
    starts = np.flatnonzero(new)
    size_N = np.diff(np.r_[starts, len(b)])
    per_category = np.bincount(category_S[starts])
    cluster_C = np.empty(len(b), dtype=np.intp)
    cluster_C[order] = np.cumsum(new) - 1
    return ClusterMeans(
        before_N=np.add.reduceat(b[order], starts) / size_N,
        after_N=np.add.reduceat(a[order], starts) / size_N,
        weight_N=1 / (len(per_category) * per_category[category_S[starts]]),
        category_N=category_S[starts],
        cluster_C=cluster_C,
    )


def units_of(cluster_C: NDArray[np.intp], together: Sequence[object | None]) -> NDArray[np.intp]:
    """`(N,)`: the number of the unit that each of N clusters is drawn in: one for clusters of equal labels, one for each without.

    Args:
        cluster_C: as in `ClusterMeans`.
        together: `(C,)` labels of contrasts, compared as text; None: none.

    Raises:
        ValueError: not one label per contrast, or several in one cluster.
    """
    if len(together) != len(cluster_C):
        raise ValueError(f"'together' must have one label per contrast: {len(cluster_C)}. Got {len(together)}.")
    label_of: dict[int, str | None] = {}
    for cluster, label in zip(cluster_C.tolist(), together, strict=True):
        own = None if label is None else str(label)
        if label_of.setdefault(cluster, own) != own:
            raise ValueError(f"contrasts of one cluster must be drawn together. Got {label_of[cluster]!r} and {own!r} in one.")
    number: dict[tuple[int, str | None], int] = {}
    keys = [(-1, label) if (label := label_of[cluster]) is not None else (cluster, None) for cluster in range(len(label_of))]
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.intp)


def effective_clusters(share_N: Floats) -> float:
    """Kish's effective number of clusters, `(sum |s|)^2 / sum s^2`, for the share of the mean that each one carries.

    n equal shares count n; one cluster that holds everything counts 1. Source: Kish 1965, section 11.7.

    >>> effective_clusters(np.array([0.25, 0.25, 0.25, 0.25])), round(effective_clusters(np.array([0.86, 0.11, 0.03])), 2)
    (4.0, 1.33)
    """
    size = float(np.abs(share_N).sum())
    return size**2 / float((share_N**2).sum()) if size > 0 else 0.0


def span_of_ratios(before_N: Floats, after_N: Floats) -> float:
    """How far the clusters' log ratios after / before lie apart; infinite where one has no logarithm.

    A ratio of means is a weighted mean of the clusters' ratios, so it lies within their span whatever the weights. An interval
    that holds "no change" and reaches further than this to either side says less than the bare data do: it is "not estimable".
    Clusters that are 0 before and after carry no weight and are passed over. Source: this project, docs/method/statistics.md.
    """
    carries_N = (before_N != 0) | (after_N != 0)
    b_N, a_N = before_N[carries_N], after_N[carries_N]
    if not b_N.size or b_N.min() <= 0 or a_N.min() <= 0:
        return math.inf
    return float(np.ptp(np.log(a_N) - np.log(b_N)))


def _values(owner: str, name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"The '{name}' of {owner} must be one value per contrast. Got shape {array.shape} instead.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"The '{name}' of {owner} must be finite. Got {array[bad[0]]} at index {bad[0]} "
            f"({bad.size} of {array.size} values). Count such contrasts and leave them out of both arrays."
        )
    return array
