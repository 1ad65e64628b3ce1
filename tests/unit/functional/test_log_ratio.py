"""Bootstrap-t on the log scale, from resamples that are given."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fairprune_framework.functional.log_ratio import LogRatio, log_ratio
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


def steps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Resamples that lie 1, 2, ... standard errors of 1/8 from an estimate of -1/2, to both sides."""
    away = np.arange(1, count + 1) * np.where(np.arange(count) % 2, 1, -1)
    return -0.5 + away / 8, np.full(count, 1 / 8)


def test_ends_and_p_value_by_counting() -> None:
    """Of nine resamples two in ten are at 8 standard errors or beyond, the data counted; at 4, where 1 lies, or beyond are six."""
    found = log_ratio(-0.5, 1 / 8, *steps(9), span=9.0, level=0.8)
    assert [found.ci_low, found.ci_high] == pytest.approx([math.exp(-1.5), math.exp(0.5)])
    assert found.p_value == 7 / 10
    assert (found.bound_low, found.bound_high) == (None, None)
    enough = log_ratio(-0.5, 1 / 8, *steps(49), span=9.0, level=0.8)  # the farthest of 49, and no fewer, is the bound
    assert [enough.bound_low, enough.bound_high] == pytest.approx([math.exp(-0.5 - 49 / 8), math.exp(-0.5 + 49 / 8)])
    assert log_ratio(-0.5, 1 / 8, *steps(48), span=9.0, level=0.8).bound_low is None


def test_the_span_may_be_reached_and_not_exceeded() -> None:
    assert log_ratio(-0.5, 1 / 8, *steps(9), span=1.0, level=0.8).not_estimable is None
    assert log_ratio(-0.5, 1 / 8, *steps(9), span=0.999, level=0.8).not_estimable == TOO_WIDE


def test_where_nothing_varies_every_end_is_the_ratio() -> None:
    found = log_ratio(math.log(0.7), 0.0, np.full(9, math.log(0.7)), np.zeros(9), span=0.0, level=0.8)
    ends = [found.ratio, found.ci_low, found.ci_high, found.bound_low, found.bound_high]
    assert ends == pytest.approx([0.7] * 5)
    assert (found.p_value, found.standard_error, found.detectable) == (1 / 10, 0.0, 1.0)
    assert log_ratio(0.0, 0.0, np.zeros(9), np.zeros(9), span=0.0, level=0.8).p_value == 1.0


def test_why_there_is_no_interval() -> None:
    none = np.zeros(0)
    gone = log_ratio(-math.inf, 0.1, none, none, span=1.0, level=0.95)
    assert (gone.ratio, gone.standard_error, gone.detectable) == (None, None, None)
    assert gone.not_estimable == "a mean is 0 or negative, so that there is no ratio"
    alone = log_ratio(-0.5, math.inf, none, none, span=1.0, level=0.95)
    assert (alone.ratio, alone.standard_error) == (math.exp(-0.5), None)
    assert alone.not_estimable == "without one cluster a mean is 0 or negative"
    unasked = log_ratio(-0.5, 0.1, none, none, span=1.0, level=0.95)
    assert (unasked.standard_error, unasked.ci_low, unasked.p_value) == (0.1, None, None)
    assert unasked.not_estimable == "no resamples were asked for"


def test_a_ratio_is_made_by_name_and_does_not_change() -> None:
    with pytest.raises(TypeError, match="positional"):
        LogRatio(0.5, 0.1)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        LogRatio(ratio=0.5, standard_error=0.1).ratio = 1.0  # type: ignore[misc]


def test_a_bound_that_no_number_holds_is_none() -> None:
    """A few templates that hold nearly everything, beside some that hold nearly nothing."""
    log_R, error_R = np.r_[np.linspace(-0.6, -0.4, 96), np.full(3, 2000.0)], np.full(99, 0.1)
    found = log_ratio(-0.5, 0.1, log_R, error_R, span=9.0, level=0.95)
    assert found.ci_high is not None
    assert (found.bound_low, found.bound_high) == (None, None)
    assert found.no_bound is not None
    endless = log_ratio(-0.5, 0.1, log_R, error_R, span=math.inf, level=0.98)
    assert (endless.ci_high, endless.bound_high) == (None, None)
    assert "some resamples" in str(endless.not_estimable)
