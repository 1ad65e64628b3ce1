"""The relative change of a mean of per-contrast values, before and after pruning, with a paired bootstrap over clusters.

A cluster is (category, template_id): contrasts from one template share its words, so they are no independent evidence.
Every cluster is one draw, or several that stand in one sentence are, and has the weight w_c = 1 / (K n_k), for K categories
and n_k clusters in its category k; macro means are then weighted sums, B = sum w_c b_c and A = sum w_c a_c, and with ideal 0
the change is R - 1, where R = A / B.

Method: bootstrap-t (Efron and Tibshirani 1993, section 12.5), symmetric (Hall 1988), on log R with the delta method, over
jackknife standard errors of the ratio. Each choice was made on simulated coverage (benchmarks/bootstrap_coverage.py):

- *bootstrap-t, not percentile*: percentile intervals cover 83 to 88 % at 10 clusters.
- *log R, and |t| in place of t*: the ratio of two heavy-tailed means is skewed. Plain R costs about one point of coverage,
  equal tails one to three.
- *jackknife in place of plain linearised errors*: the residual e_c = w_c (a_c - R b_c) is divided by 1 - h_c, where
  h_c = w_c b_c / B is the share of the cluster. Without it a cluster that holds half of B hides its own spread, since R
  follows it; coverage falls by up to three points where tails are heavy. With equal shares both errors are the same.
- *all clusters in one urn, not stratified by category*: categories are few and often hold two or three templates. Within two
  clusters a resampled variance is 0 half of the time: stratified intervals cover 83 to 86 % there, or, with the error
  stratified too, 98 % at three times the width. One urn counts differences between categories as noise, which costs some
  width where they are large. The estimate itself stays macro-averaged.

Limits: 95 % intervals cover 93 to 96 % (to simulation error) at 10, 20 and 80 clusters, but 89 to 92 % where the clusters'
ratios scatter by a factor of e. What they miss is mostly on one side: heavy tails are seldom seen, so that the whole interval
lies below the truth in 3 to 6 % of samples, not 2.5 %; a `fairer` with a bound next to 0 is weaker than it looks.

Where the logarithm does not exist (a resampled mean reaches or crosses the ideal), the same bootstrap runs on R itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fairprune_framework.functional.clusters import Floats, cluster_means, span_of_ratios, units_of

MIN_CLUSTERS = 8
"""Below this no interval is given, and the verdict is `not-judged`."""
RESAMPLES = 2000
"""Of a bootstrap, where a caller does not say how many; the smallest p-value is 1 / (RESAMPLES + 1)."""
BOUND_LEVEL = 0.99
"""Of one-sided bounds. The verdict rests on these: an interval misses on one side more often than its level says."""
DETECTABLE_STANDARD_ERRORS = 2.8
"""1.96 + 0.84: a two-sided 5 % test finds an effect of that many standard errors with 80 % power."""
TOO_WIDE = "the interval shows nothing, and reaches further than the ratios of all clusters lie apart"
NO_BOUND = "in more than 2 % of resamples a mean is 0 or nearly so, so that there is no 99 % bound"
_MAX_SHARE = 0.9  # a cluster that holds all of B cannot be left out; its residual is multiplied by 10 at most
_ROUNDING = 1e-13  # standard errors of R below this times R are rounding
_BLOCK = 1 << 20  # resamples times clusters that are held at once


@dataclass(frozen=True, kw_only=True)
class PairedChange:
    """The result of `paired_change`. `change`, its interval, its bounds and `standard_error` are relative to |before - ideal|, of a
    value that has a sign to `before`."""

    before: float
    after: float
    difference: float
    change: float | None
    """None: `before` is the ideal already, so no relative change exists."""
    ci_low: float | None
    """None: no change exists, fewer than `MIN_CLUSTERS` clusters, or `before` cannot be told from the ideal."""
    ci_high: float | None
    bound_low: float | None
    """One-sided at `BOUND_LEVEL`: the change is above it. None where there is no interval, where it is not estimable, or
    with fewer resamples than 49."""
    bound_high: float | None
    """One-sided at `BOUND_LEVEL`: the change is below it."""
    p_value: float | None
    not_estimable: str | None
    """Why nothing should be read off the interval, or why there is none; None: it means what it says."""
    n: int
    clusters: int
    standard_error: float | None

    @property
    def no_bound(self) -> str | None:
        """Why there are no bounds; None where there are."""
        return None if self.bound_low is not None else self.not_estimable or NO_BOUND


def paired_change(
    before: ArrayLike,
    after: ArrayLike,
    categories: Sequence[object],
    clusters: Sequence[object],
    *,
    together: Sequence[object | None] | None = None,
    ideal: float = 0.0,
    signed: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> PairedChange:
    """Estimate `(|A - ideal| - |B - ideal|) / |B - ideal|`, its interval and its p-value. Source: see the module.

    Args:
        before: `(C,)`, one value per contrast, any unit.
        after: `(C,)`, the same contrasts in the same order.
        categories: `(C,)` labels; compared as text.
        clusters: `(C,)` labels such as template ids. The same label in two categories makes two clusters.
        together: `(C,)` labels of what shares its words across clusters, also of several categories: clusters of one label are one
            draw, and count as one. All contrasts of a cluster have the same; None: the cluster is drawn alone.
        ideal: The value of a fair model.
        signed: The value is no distance, the larger the better: the change is `(A - B) / B`, below -1 where the sign turned, and there is
            none where `B` is not above 0.
        resamples: Bootstrap resamples; 0 gives means without an interval. Identical inputs, in any order of rows, and seed
            give identical results.
        seed: Of numpy's PCG64.
        level: Of the interval.

    Returns:
        The two-sided p-value tests `change == 0` with the t* of the interval, as (1 + hits) / (1 + resamples); it is at
        most `1 - level` exactly when the interval excludes 0. The one-sided bounds are the ends of the symmetric interval
        at level 2 `BOUND_LEVEL` - 1, from the same t*. A resample in which nothing varies has no standard error;
        it is divided by the one of the data. A resample whose `before` is the ideal, or not above 0 where `signed`, counts
        as infinitely far away.

    Raises:
        ValueError: lengths differ, there is no contrast, a value is NaN or infinite, or `resamples` is too small.

    >>> before = [0.40, 0.20, 0.30, 0.50, 0.10, 0.30, 0.20, 0.60]
    >>> after = [0.20, 0.12, 0.21, 0.25, 0.06, 0.18, 0.11, 0.30]
    >>> result = paired_change(before, after, ["age"] * 4 + ["race"] * 4, [f"T{i}" for i in range(8)])
    >>> print(f"{result.change:+.2f} [{result.ci_low:+.2f}, {result.ci_high:+.2f}]")
    -0.45 [-0.54, -0.34]
    """
    means = cluster_means("paired_change", before, after, categories, clusters)
    if resamples and (level <= 0 or (1 - level) * (resamples + 1) < 1):
        raise ValueError(f"paired_change needs 0 < level < 1 and 1 / (1 - level) resamples. Got {level=}, {resamples=}.")

    b_N, a_N, weight_N = means.before_N, means.after_N, means.weight_N
    b_mean, a_mean = float(weight_N @ b_N), float(weight_N @ a_N)
    difference = 0.0 if np.array_equal(a_N, b_N) else a_mean - b_mean

    # Measured from the ideal, and turned so that both means are positive: then the change is R - 1 for every ideal.
    b_N, a_N = weight_N * (b_N - ideal), weight_N * (a_N - ideal)
    if together is not None and any(label is not None for label in together):
        unit_N = units_of(means.cluster_C, together)
        b_N, a_N = (np.bincount(unit_N, values).astype(np.float64) for values in (b_N, a_N))
    if not signed:
        b_N, a_N = b_N * math.copysign(1, b_N.sum()), a_N * math.copysign(1, a_N.sum())
    base = float(b_N.sum())
    change = error = p = None
    interval = bounds = _NOWHERE
    why: str | None = "the value before is the ideal, or cannot be told from it by rounding"
    if signed:
        why = "the value before is not above 0, so that it has no relative change"
    if base > _ROUNDING * float(np.abs(b_N).sum()):
        ratio = 1.0 if difference == 0.0 else float(a_N.sum()) / base
        change = ratio - 1
        if len(b_N) > 1:
            error = _standard_errors(np.ones((1, len(b_N))), a_N, b_N, ratio)[1].item()
        why = f"{len(b_N)} clusters are too few for an interval; {MIN_CLUSTERS} are needed"
        if resamples and error is not None and len(b_N) >= MIN_CLUSTERS:
            interval, bounds, p = _bootstrap_t(a_N, b_N, ratio, error, resamples, seed, level, signed)
            why = _not_estimable(interval, ratio, b_N, a_N)
        elif not resamples:
            why = "no resamples were asked for"
    return PairedChange(
        before=b_mean,
        after=a_mean,
        difference=difference,
        change=change,
        ci_low=interval[0],
        ci_high=interval[1],
        bound_low=None if why else bounds[0],
        bound_high=None if why else bounds[1],
        p_value=p,
        not_estimable=why,
        n=len(means.cluster_C),
        clusters=len(b_N),
        standard_error=error,
    )


def minimum_detectable_change(result: PairedChange) -> float | None:
    """Return the relative change that data like these would show with 80 % power: 2.8 standard errors; None without one.

    To be read beside "no difference". It uses normal quantiles, so it flatters few
    clusters: the simulated power is 64 % at 10 clusters, 72 % at 20 and 78 % at 80; 3.5 errors would be right at 10.
    """
    return None if result.standard_error is None else DETECTABLE_STANDARD_ERRORS * result.standard_error


def _standard_errors(counts_RN: Floats, a_N: Floats, b_N: Floats, ratio: float) -> tuple[Floats, Floats]:
    """Return `(R,)` each: how far the ratio of every resample is from `ratio`, and its jackknife standard error.

    Leaving out one cluster moves the ratio by -e_c / (B (1 - h_c)); se^2 = (n - 1) / n times the sum of these squared.
    Residuals of a resample are those of the data minus shift * b, which loses no digits where a and b nearly agree.
    """
    n = len(a_N)
    residual_N = a_N - ratio * b_N
    base_R = counts_RN @ b_N
    with np.errstate(divide="ignore", invalid="ignore"):
        shift_R = (counts_RN @ residual_N) / base_R
        share_RN = np.minimum(np.abs(b_N) / (counts_RN @ np.abs(b_N))[:, None], _MAX_SHARE)
        pseudo_RN = (residual_N - shift_R[:, None] * b_N) / (1 - share_RN)
        error_R = np.sqrt((n - 1) / n * (counts_RN * pseudo_RN**2).sum(1)) / np.abs(base_R)
    return shift_R, error_R


Ends = tuple[float | None, float | None]
_NOWHERE: Ends = (None, None)


def _not_estimable(interval: Ends, ratio: float, b_N: Floats, a_N: Floats) -> str | None:
    """Say why an interval of `ratio - 1` means nothing; None where it does."""
    if interval[0] is None or interval[1] is None:
        return "in some resamples the value before cannot be told from the ideal"
    with np.errstate(divide="ignore"):
        reach = float(np.log((interval[1] + 1) / ratio)) if ratio > 0 else 0.0
    shows_nothing = interval[0] <= 0 <= interval[1]
    return TOO_WIDE if shows_nothing and reach > max(span_of_ratios(b_N, a_N), _ROUNDING) else None


def _bootstrap_t(
    a_N: Floats, b_N: Floats, ratio: float, error: float, resamples: int, seed: int, level: float, signed: bool
) -> tuple[Ends, Ends, float | None]:
    """Return the interval and the one-sided bounds of `ratio - 1`, and the p-value of `ratio == 1`."""
    rounding = _ROUNDING * max(ratio, 1.0)
    if error <= rounding:  # every cluster changed by the same factor: nothing varies
        point = (ratio - 1, ratio - 1)
        return point, point, 1.0 if abs(ratio - 1) <= rounding else 1 / (resamples + 1)

    n = len(a_N)
    rng = np.random.Generator(np.random.PCG64(seed))
    blocks = []
    for start in range(0, resamples, step := max(1, _BLOCK // n)):
        counts_RN = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        moved_R, errors_R = _standard_errors(drawn_RN := counts_RN.astype(np.float64), a_N, b_N, ratio)
        blocks.append((np.where(drawn_RN @ b_N > 0, moved_R, np.nan) if signed else moved_R, errors_R))
    shift_R, error_R = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    error_R = np.where(error_R <= rounding, error, error_R)
    ratio_R = ratio + shift_R

    logarithmic = ratio > 0 and bool(np.all(ratio_R > 0))
    with np.errstate(invalid="ignore"):
        t_R = np.abs(np.log(ratio_R / ratio) * ratio_R / error_R if logarithmic else shift_R / error_R)
    t_R = np.sort(np.where(np.isnan(t_R), np.inf, t_R))
    t = abs(math.log(ratio)) * ratio / error if logarithmic else abs(ratio - 1) / error
    p = (1 + int(np.count_nonzero(t_R >= t))) / (resamples + 1)

    def ends(confidence: float) -> Ends:
        reach = order_statistic(t_R, confidence) * error
        with np.errstate(over="ignore"):
            low, high = (
                (float(np.expm1(math.log(ratio) - reach / ratio)), float(np.expm1(math.log(ratio) + reach / ratio)))
                if logarithmic
                else ((ratio - reach if signed else max(ratio - reach, 0.0)) - 1, ratio + reach - 1)
            )
        return (low, high) if math.isfinite(high) and math.isfinite(low) else _NOWHERE

    interval = ends(level)
    return interval, ends(2 * BOUND_LEVEL - 1), p if interval != _NOWHERE else None


def order_statistic(t_R: Floats, level: float) -> float:
    """The quantile of sorted |t*| for a level; infinite where R resamples are too few for it.

    Whole order statistics, not interpolated: only then do the interval and the p-value agree in every case.
    """
    rank = len(t_R) - math.floor((1 - level) * (len(t_R) + 1) + 1e-9)
    return float(t_R[rank]) if rank < len(t_R) else math.inf
