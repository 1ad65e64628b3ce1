"""Statistics that are not the paired bootstrap over clusters (`paired.py`): items that flip, shares, many tests, effect sizes.

scipy does the work where it has the function; each is compared with statsmodels in the tests. All take plain numbers.

- `mcnemar`: exact two-sided binomial test on the items that changed sides (McNemar 1947). Items are taken as independent.
- `wilson`: interval of a share (Wilson 1927); `clustered_wilson`: of items that share a template (Korn and Graubard 1998).
- `holm` over a family of categories or tasks (Holm 1979), `benjamini_hochberg` over neurons (Benjamini and Hochberg 1995).
- `minimum_detectable_flips`, `minimum_detectable_difference`: what data like these would have shown with 80 % power; to be read
  beside every "no difference".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairprune_framework.functional.paired_bootstrap import DETECTABLE_STANDARD_ERRORS

MIN_ITEMS = 8
"""Below this no interval is given for a share or a mean over items."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Items by a yes-or-no answer before and after."""

    n: int
    before: int
    """Items with yes before."""
    after: int
    only_before: int
    """Yes before, no after."""
    only_after: int
    """No before, yes after."""
    p_value: float

    @property
    def newly(self) -> float:
        """Share of all items that became a yes: newly biased, where yes is the biased answer."""
        return self.only_after / self.n

    @property
    def detectable(self) -> float:
        """Difference of shares that so many items, flipping as these do, would have shown with 80 % power."""
        return minimum_detectable_flips(self.n, self.only_before + self.only_after)


def flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Count who changed sides, and test whether the two directions differ.

    >>> result = flips([True] * 50 + [False] * 50, [True] * 30 + [False] * 65 + [True] * 5)
    >>> result.only_before, result.only_after, round(result.p_value, 6)
    (20, 5, 0.004077)

    Raises:
        ValueError: lengths differ, or there is no item.
    """
    b, a = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if b.shape != a.shape or b.ndim != 1 or not b.size:
        raise ValueError(f"flips needs two answers for each of at least one item. Got shapes {b.shape} and {a.shape}.")
    only_before, only_after = int((b & ~a).sum()), int((a & ~b).sum())
    return Flips(
        n=b.size,
        before=int(b.sum()),
        after=int(a.sum()),
        only_before=only_before,
        only_after=only_after,
        p_value=mcnemar(only_before, only_after),
    )


def mcnemar(only_before: int, only_after: int) -> float:
    """Exact two-sided p-value of "both directions are equally likely"; 1 where nothing flipped.

    >>> round(mcnemar(41, 15), 4)
    0.0007
    """
    from scipy.stats import binomtest

    total = only_before + only_after
    return 1.0 if total == 0 else float(binomtest(only_before, total, 0.5).pvalue)


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share. `n` may be an effective number of items, no whole number (`clustered_wilson`).

    >>> low, high = wilson(811, 1508)
    >>> round(low, 4), round(high, 4)
    (0.5126, 0.5628)

    Raises:
        ValueError: `n` is not above 0, or `successes` is not in 0 to n.
    """
    from scipy.stats import norm

    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"wilson needs successes of 0 to n, and n above 0. Got {successes} of {n}.")
    share, z2 = successes / n, float(norm.isf((1 - level) / 2)) ** 2
    centre, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    scale = 1 + z2 / n
    return (
        0.0 if successes == 0 else (centre - half) / scale,
        1.0 if successes == n else (centre + half) / scale,
    )


def clustered_wilson(answers: Sequence[bool], clusters: Sequence[object], level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of items that come in clusters, from the effective number of items.

    That number is n / deff, by the design effect of the share over clusters (never below 1), times the squared ratio of Student's
    quantiles of n - 1 and of m - 1 degrees of freedom, for m clusters. Where all answers agree they show no design effect, and each
    cluster counts as one item. With one item a cluster this is `wilson`. Source: the effective number is that of Korn and Graubard
    1998, who use it in Clopper and Pearson's interval.

    >>> one = clustered_wilson([True, False] * 10, range(20))
    >>> pairs = clustered_wilson([True] * 10 + [False] * 10, [number // 2 for number in range(20)])
    >>> [round(bound, 3) for bound in (*one, *pairs)]
    [0.299, 0.701, 0.217, 0.783]

    Args:
        answers: (C,) yes or no of each item.
        clusters: (C,) labels.

    Raises:
        ValueError: lengths differ, or there is no item.
    """
    from scipy.stats import t as student

    yes = np.asarray(answers, dtype=np.float64)
    if len(yes) != len(clusters) or not len(yes):
        raise ValueError(f"clustered_wilson needs a cluster for each of at least one item. Got {len(yes)} and {len(clusters)}.")
    label_C = np.unique(np.array([str(one) for one in clusters]), return_inverse=True)[1]
    size_N = np.bincount(label_C)
    n, m, share = len(yes), len(size_N), float(yes.mean())
    if n == m:
        return wilson(float(yes.sum()), n, level)
    if m == 1 or share in (0.0, 1.0):
        effective = float(m)
    else:
        spread = float(((np.bincount(label_C, weights=yes) - share * size_N) ** 2).sum())
        design = spread / (n * share * (1 - share)) * (m / (m - 1)) / (n / (n - 1))
        tail = (1 - level) / 2
        effective = n / max(1.0, design) * float(student.isf(tail, n - 1) / student.isf(tail, m - 1)) ** 2
    return wilson(share * effective, effective, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: reject where one is at most 5 %, and no more than 5 % of families hold an error.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted.tolist()  # type: ignore[no-any-return]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: of those at most 5 %, no more than 5 % are expected to be errors.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control

    return [] if not len(p_values) else false_discovery_control(p_values, method="bh").tolist()


def paired_effect_size(before: ArrayLike, after: ArrayLike) -> float | None:
    """Cohen's d_z: mean of the differences over their standard deviation; None where nothing varies.

    >>> paired_effect_size([1.0, 2.0, 3.0], [1.5, 2.0, 4.0])
    1.0
    """
    off: NDArray[np.float64] = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    spread = float(off.std(ddof=1)) if off.size > 1 else 0.0
    return float(off.mean()) / spread if spread > 0 else None


def cohens_h(before: float, after: float) -> float:
    """Effect size of a change between two shares: 2 asin(sqrt(after)) - 2 asin(sqrt(before)). Source: Cohen 1988, chapter 6."""
    return 2 * math.asin(math.sqrt(after)) - 2 * math.asin(math.sqrt(before))


def minimum_detectable_flips(n: int, flipped: int) -> float:
    """Difference of two paired shares that is found with 80 % power where `flipped` of `n` items change sides.

    Under "no difference" the standard error of the difference is sqrt(flipped) / n (Miettinen 1968, with the share of
    flips as observed); one flip is counted where none was seen.
    """
    return DETECTABLE_STANDARD_ERRORS * math.sqrt(max(flipped, 1)) / n


def minimum_detectable_difference(before: ArrayLike, after: ArrayLike) -> float | None:
    """Difference of two paired means that data like these would have shown with 80 % power; None for a single item."""
    off: NDArray[np.float64] = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return None if off.size < 2 else DETECTABLE_STANDARD_ERRORS * float(off.std(ddof=1)) / math.sqrt(off.size)


def retention(before: float, after: float) -> float | None:
    """after / before, as capability is kept; None where before is 0."""
    return after / before if before else None
