"""A ratio with its interval: symmetric bootstrap-t on the log scale, from an estimate and its resamples.

Source: Efron and Tibshirani 1993, section 12.5 (bootstrap-t); Hall 1988 (symmetric).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fairprune_framework.functional.clusters import Floats
from fairprune_framework.functional.paired_bootstrap import (
    BOUND_LEVEL,
    DETECTABLE_STANDARD_ERRORS,
    NO_BOUND,
    TOO_WIDE,
    order_statistic,
)

ROUNDING = 1e-13
"""Log ratios and their errors below this are rounding."""
LARGEST = 700.0
"""Log ratios below this have a ratio that a float holds."""


@dataclass(frozen=True, kw_only=True)
class LogRatio:
    """A ratio with its uncertainty; every end is a ratio, and 1 says that nothing differs."""

    ratio: float | None
    """None: a mean is 0 or negative, so that there is no ratio."""
    standard_error: float | None
    """Of the log ratio."""
    ci_low: float | None = None
    """None: not estimable."""
    ci_high: float | None = None
    bound_low: float | None = None
    """One-sided at `BOUND_LEVEL`: the ratio is above it. None: not estimable, or fewer resamples than 49."""
    bound_high: float | None = None
    """One-sided at `BOUND_LEVEL`: the ratio is below it."""
    p_value: float | None = None
    """Two-sided, of "the ratio is 1"."""
    not_estimable: str | None = None
    """Why there is no interval; None where there is one."""

    @property
    def no_bound(self) -> str | None:
        """Why there are no bounds; None where there are."""
        return None if self.bound_low is not None else self.not_estimable or NO_BOUND

    @property
    def detectable(self) -> float | None:
        """The ratio below 1 that data like these would show with 80 % power at 5 %: exp(-2.8 standard errors)."""
        return None if self.standard_error is None else math.exp(-DETECTABLE_STANDARD_ERRORS * self.standard_error)

    def to_json(self) -> dict[str, Any]:
        """JSON form: the fields and `detectable`; every number is finite."""
        return asdict(self) | {"detectable": self.detectable}


def log_ratio(log: float, error: float, log_R: Floats, error_R: Floats, *, span: float, level: float) -> LogRatio:
    """Estimate a ratio from its logarithm in the data and in R resamples, each with its jackknife standard error.

    A resample in which nothing varies has no standard error; it is divided by the one of the data. One without a logarithm
    or with an infinite error counts as infinitely far away.

    Args:
        span: how far the data allow the interval to reach to either side, on the log scale; beyond it is not estimable.
        level: of the interval; the bounds are the ends of the symmetric interval at level 2 `BOUND_LEVEL` - 1.

    Returns:
        `p_value` is (1 + hits) / (1 + R); it is at most `1 - level` exactly when the interval excludes 1.
    """
    if not math.isfinite(log):
        return LogRatio(ratio=None, standard_error=None, not_estimable="a mean is 0 or negative, so that there is no ratio")
    ratio, R = math.exp(log), len(log_R)
    if not math.isfinite(error):
        return LogRatio(ratio=ratio, standard_error=None, not_estimable="without one cluster a mean is 0 or negative")
    if not R:
        return LogRatio(ratio=ratio, standard_error=error, not_estimable="no resamples were asked for")
    if error <= ROUNDING:  # every cluster changed by the same factor: nothing varies
        return without_doubt(log, error, 1 / (R + 1))

    with np.errstate(invalid="ignore"):
        t_R = np.abs(log_R - log) / np.where(error_R <= ROUNDING, error, error_R)
    t_R = np.sort(np.where(np.isfinite(t_R) & np.isfinite(error_R), t_R, np.inf))
    reach, far = (order_statistic(t_R, confidence) * error for confidence in (level, 2 * BOUND_LEVEL - 1))
    told, bounded = (log + each < LARGEST for each in (reach, far))
    if not told or reach > max(span, abs(log)):  # one that shows something is not withheld
        why = TOO_WIDE if told else "in some resamples a mean is 0 or negative, so that there is no ratio"
        return LogRatio(ratio=ratio, standard_error=error, not_estimable=why)
    return LogRatio(
        ratio=ratio,
        standard_error=error,
        ci_low=math.exp(log - reach),
        ci_high=math.exp(log + reach),
        bound_low=math.exp(log - far) if bounded else None,
        bound_high=math.exp(log + far) if bounded else None,
        p_value=(1 + int(np.count_nonzero(t_R >= abs(log) / error))) / (R + 1),
    )


def without_doubt(log: float, error: float, least_p: float | None) -> LogRatio:
    """A ratio of which nothing varies: its interval and bounds are itself.

    Args:
        error: no more than `ROUNDING`.
        least_p: the p-value where the ratio is not 1; None: there is none.
    """
    ratio = math.exp(log)
    return LogRatio(
        ratio=ratio,
        standard_error=error,
        ci_low=ratio,
        ci_high=ratio,
        bound_low=ratio,
        bound_high=ratio,
        p_value=1.0 if abs(log) <= ROUNDING else least_p,
    )
