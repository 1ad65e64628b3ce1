"""The ratio and its interval against a bootstrap-t done by hand on the same resamples, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fairprune_framework.functional.log_ratio import log_ratio

LEVEL = 0.95


def estimates(seed: int, n: int = 25, R: int = 399, effect: float = 0.8) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The log of a mean over n values (its truth: log `effect`), its error, and those of R resamples, by the delta method."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(16, effect / 16, n)
    drawn = values[rng.integers(0, n, (R, n))]

    def log_and_error(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = x.mean(-1)
        return np.log(mean), x.std(-1, ddof=1) / np.sqrt(n) / mean

    (log, error), (logs, errors) = log_and_error(values), log_and_error(drawn)
    return float(log), float(error), logs, errors


def test_the_interval_is_the_symmetric_bootstrap_t() -> None:
    log, error, logs, errors = estimates(0)
    found = log_ratio(log, error, logs, errors, span=math.inf, level=LEVEL)
    t = np.sort(np.abs(logs - log) / errors)
    reach = t[380 - 1] * error  # the 380th of 399: 0.95 of 400
    assert found.ratio == pytest.approx(math.exp(log))
    assert (found.ci_low, found.ci_high) == pytest.approx((math.exp(log - reach), math.exp(log + reach)))
    far = t[392 - 1] * error  # 0.98 of 400: each side at 99 %
    assert (found.bound_low, found.bound_high) == pytest.approx((math.exp(log - far), math.exp(log + far)))
    assert found.p_value == pytest.approx((1 + np.sum(t >= abs(log) / error)) / 400)
    assert found.standard_error == error
    assert found.detectable == pytest.approx(math.exp(-2.8 * error), rel=2e-3)


@pytest.mark.parametrize("seed", range(12))
def test_the_interval_excludes_one_exactly_where_p_is_small(seed: int) -> None:
    found = log_ratio(*estimates(seed, n=12, effect=0.9), span=math.inf, level=LEVEL)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.p_value is not None
    assert (found.p_value <= 1 - LEVEL + 1e-12) is not (found.ci_low <= 1 <= found.ci_high)


def test_coverage() -> None:
    """Within four standard errors of 95 % in so many samples, and of 99 % for each bound."""
    truth, samples = 0.8, 300
    covered = below = above = 0
    for seed in range(samples):
        found = log_ratio(*estimates(1000 + seed, R=199, effect=truth), span=math.inf, level=LEVEL)
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.bound_low is not None
        assert found.bound_high is not None
        covered += found.ci_low <= truth <= found.ci_high
        below += truth < found.bound_low
        above += truth > found.bound_high
    assert covered / samples == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / samples) ** 0.5)
    assert max(below, above) / samples <= 0.01 + 4 * (0.01 * 0.99 / samples) ** 0.5


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_same_factor_everywhere_leaves_no_width(factor: float) -> None:
    log = math.log(factor)
    found = log_ratio(log, 0.0, np.full(99, log), np.zeros(99), span=0.0, level=LEVEL)
    assert (found.ci_low, found.ci_high, found.bound_low, found.bound_high) == pytest.approx((factor,) * 4)
    assert found.p_value == (1.0 if factor == 1.0 else 0.01)


def test_what_is_not_estimable_says_why() -> None:
    log, error, logs, errors = estimates(0)
    for found, words in (
        (log_ratio(-math.inf, error, logs, errors, span=9.0, level=LEVEL), "a mean is 0 or negative"),
        (log_ratio(log, math.inf, logs, errors, span=9.0, level=LEVEL), "without one cluster"),
        (log_ratio(log, error, logs[:0], errors[:0], span=9.0, level=LEVEL), "no resamples"),
        (
            log_ratio(log, error, np.where(np.arange(399) < 60, -np.inf, logs), errors, span=9.0, level=LEVEL),
            "in some resamples",
        ),
    ):
        assert words in str(found.not_estimable)
        assert found.ci_low is found.ci_high is found.p_value is None
        assert all(value is None or isinstance(value, str) or math.isfinite(value) for value in found.to_json().values())
    assert log_ratio(-math.inf, error, logs, errors, span=9.0, level=LEVEL).ratio is None


def test_an_interval_wider_than_the_data_is_withheld_unless_it_shows_something() -> None:
    _, error, logs, errors = estimates(0)
    centred = logs - logs.mean()
    wide = log_ratio(0.01, error, centred, errors, span=0.001, level=LEVEL)
    assert wide.ci_low is None
    assert wide.not_estimable is not None
    assert wide.ratio == pytest.approx(math.exp(0.01))
    shown = log_ratio(-1.0, error, centred - 1.0, errors, span=0.001, level=LEVEL)
    assert shown.ci_high is not None
    assert shown.ci_high < 1


def test_a_few_resamples_without_a_logarithm_count_as_infinitely_far() -> None:
    log, error, logs, errors = estimates(0)
    some = np.where(np.arange(399) < 5, -np.inf, logs)
    found, plain = (log_ratio(log, error, each, errors, span=9.0, level=LEVEL) for each in (some, logs))
    assert found.ci_low is not None
    assert plain.ci_low is not None
    assert found.ci_low <= plain.ci_low
    assert log_ratio(log, error, np.where(np.arange(399) < 15, -np.inf, logs), errors, span=9.0, level=LEVEL).bound_low is None
