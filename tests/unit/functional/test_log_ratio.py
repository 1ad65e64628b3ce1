"""Bootstrap-t on the log scale, from resamples that are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fairprune_framework.functional.log_ratio import log_ratio
from fairprune_framework.functional.paired_bootstrap import TOO_WIDE


def test_a_resample_without_a_usable_error_is_infinitely_far_away() -> None:
    value_R, error_R = np.full(99, -0.51), np.r_[np.full(90, 0.1), np.full(9, np.inf)]
    assert log_ratio(-0.5, 0.1, value_R, error_R, span=9.0, level=0.9).ci_low == pytest.approx(math.exp(-0.51))
    assert "some resamples" in log_ratio(-0.5, 0.1, value_R, error_R, span=9.0, level=0.95).not_estimable
    flat = log_ratio(-0.5, 0.1, value_R, np.zeros(99), span=9.0, level=0.95)  # nothing varies: the error of the data
    assert flat.ci_high == pytest.approx(math.exp(-0.49))


def test_normal_resamples_give_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    found = log_ratio(-0.3, 0.1, -0.3 + 0.1 * rng.standard_normal(99_999), np.full(99_999, 0.1), span=9.0, level=0.95)
    expected = [math.exp(-0.3 + z * 0.1) for z in (-1.96, 1.96, -2.326, 2.326)]
    assert [found.ci_low, found.ci_high, found.bound_low, found.bound_high] == pytest.approx(expected, rel=2e-3)
    assert found.p_value == pytest.approx(0.0027, abs=5e-4)  # two-sided, 3 standard errors
    assert found.detectable == pytest.approx(math.exp(-0.28))
    assert found.to_json()["detectable"] == found.detectable


def test_too_wide_is_an_interval_that_holds_1_and_is_wider_than_the_data() -> None:
    log_R, error_R = np.linspace(-1.0, 1.0, 99), np.full(99, 0.5)
    assert log_ratio(0.1, 0.5, log_R, error_R, span=0.5, level=0.95).not_estimable == TOO_WIDE
    assert log_ratio(0.1, 0.5, log_R, error_R, span=2.0, level=0.95).not_estimable is None
    shown = log_ratio(-3.0, 0.5, log_R - 3.1, error_R, span=0.5, level=0.95)
    assert shown.not_estimable is None
    assert shown.ci_high < 1
