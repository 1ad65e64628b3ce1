"""How much less did demographic contrasts fall than controls of the same size? The ratio of ratios at equal size before.

A model that damps large reactions more than small ones lowers demographic contrasts further for no other reason than that they are
larger than controls. So log(after / before) of every cluster is regressed on the side it is of and on log(before), with the weights of
the macro means:

    log(after / before) = a + b log(before) + delta [demographic];   the ratio = exp(delta)

b is 0 where size does not matter, -0.5 where every divergence becomes its square root; delta is what is left between a demographic
contrast and a control that were equally large. A sensitivity analysis, as the geometric ratio is, of which it is the adjusted version.

Method: weighted least squares; jackknife over units (templates that both sides may share), Student's t of the units less 3. Source:
analysis of covariance (Cochran 1957, Biometrics 13:261); the jackknife for clustered data (Bell and McCaffrey 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fairprune_framework.functional.clusters import Floats
from fairprune_framework.functional.log_ratio import LARGEST, ROUNDING, LogRatio, without_doubt
from fairprune_framework.functional.paired_bootstrap import BOUND_LEVEL, MIN_CLUSTERS

_ALIKE = 1e-9
"""Sizes whose logarithms differ by less are one size: no slope can be told."""


@dataclass(frozen=True, kw_only=True)
class SizedSide:
    """Clusters of demographic contrasts, or of controls."""

    before_N: Floats
    after_N: Floats
    weight_N: Floats
    """Positive; what a cluster counts."""
    unit_N: NDArray[np.intp]
    """Number of the unit that a cluster belongs to; equal numbers on either side are one unit."""


def ratio_at_equal_size(demographic: SizedSide, controls: SizedSide, *, level: float = 0.95) -> LogRatio:
    """Estimate exp(delta), its interval, its one-sided bounds and its p-value. Source: see the module.

    Returns:
        No ratio, and the reason in `not_estimable`: fewer than `MIN_CLUSTERS` units on a side, a value that has no logarithm, or
        clusters that are all of one size on a side.

    >>> rng = np.random.default_rng(0)
    >>> def side(size, unit):
    ...     before = size * np.exp(rng.standard_normal(60))
    ...     after = before**0.5 * np.exp(0.1 * rng.standard_normal(60))
    ...     return SizedSide(before_N=before, after_N=after, weight_N=np.ones(60), unit_N=np.arange(60) + unit)
    >>> found = ratio_at_equal_size(side(4.0, 0), side(1.0, 60))  # nothing but size differs
    >>> found.ci_low < 1 < found.ci_high
    True
    """
    sides = (demographic, controls)
    for name, side in zip(("demographic", "controls"), sides, strict=True):
        if (units := len(np.unique(side.unit_N))) < MIN_CLUSTERS:
            return _none(f"{units} {name} clusters are too few for an interval; {MIN_CLUSTERS} are needed")
        if not (np.all(side.before_N > 0) and np.all(side.after_N > 0)):
            return _none(f"of the {name} clusters one is 0 or negative, so that it has no logarithm")
    size_N, after_N, weight_N, unit_N = (
        np.concatenate([getattr(side, name) for side in sides]) for name in ("before_N", "after_N", "weight_N", "unit_N")
    )
    size_N = np.log(size_N)
    moved_N = np.log(after_N) - size_N
    side_N = np.repeat([1.0, 0.0], [len(side.before_N) for side in sides])
    if any(np.ptp(np.log(side.before_N)) < _ALIKE for side in sides):
        return _none("all clusters of a side are of one size, so that it cannot be told from the side")
    X_NP = np.stack([np.ones_like(size_N), size_N - np.average(size_N, weights=weight_N), side_N], 1)
    squares_NPP = weight_N[:, None, None] * X_NP[:, :, None] * X_NP[:, None, :]
    products_NP = weight_N[:, None] * X_NP * moved_N[:, None]
    _, unit_N = np.unique(unit_N, return_inverse=True)
    n = int(unit_N.max()) + 1
    squares_UPP, products_UP = np.zeros((n, 3, 3)), np.zeros((n, 3))
    np.add.at(squares_UPP, unit_N, squares_NPP)
    np.add.at(products_UP, unit_N, products_NP)
    whole, sums = squares_NPP.sum(0), products_NP.sum(0)
    try:
        log = float(np.linalg.solve(whole, sums)[2])
        without_U = np.linalg.solve(whole - squares_UPP, (sums - products_UP)[..., None])[:, 2, 0]
    except np.linalg.LinAlgError:
        return _none("without one cluster no size can be told from the side")
    if not np.isfinite(without_U).all():
        return _none("without one cluster no size can be told from the side")
    centre = math.fsum(without_U) / n
    error = math.sqrt((n - 1) / n * math.fsum(np.square(without_U - centre)))
    if error <= ROUNDING:
        return without_doubt(log, error, None)
    freedom = n - 3
    reach, far = (float(stats.t.ppf(quantile, freedom)) * error for quantile in ((1 + level) / 2, BOUND_LEVEL))
    if abs(log) + max(reach, far) > LARGEST:
        return _none("size and side can hardly be told apart")
    return LogRatio(
        ratio=math.exp(log),
        standard_error=error,
        ci_low=math.exp(log - reach),
        ci_high=math.exp(log + reach),
        bound_low=math.exp(log - far),
        bound_high=math.exp(log + far),
        p_value=float(2 * stats.t.sf(abs(log) / error, freedom)),
    )


def _none(why: str) -> LogRatio:
    return LogRatio(ratio=None, standard_error=None, not_estimable=why)
