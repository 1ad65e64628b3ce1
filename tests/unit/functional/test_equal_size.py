"""The ratio of ratios between contrasts that were equally large, against scipy, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fairprune_framework.functional.difference_in_differences import PairedValues, difference_in_differences
from fairprune_framework.functional.equal_size import SizedSide, ratio_at_equal_size


def side(before: object, after: object, first_unit: int = 0) -> SizedSide:
    before_N, after_N = np.asarray(before, float), np.asarray(after, float)
    n = len(before_N)
    return SizedSide(before_N=before_N, after_N=after_N, weight_N=np.full(n, 1 / n), unit_N=np.arange(n) + first_unit)


def made(rng: np.random.Generator, size: float, power: float, factor: float, n: int, first_unit: int = 0) -> SizedSide:
    before = size * np.exp(rng.standard_normal(n))
    return side(before, factor * before**power * np.exp(0.3 * rng.standard_normal(n)), first_unit)


def test_damping_of_what_is_large_is_no_specific_effect() -> None:
    """Square roots of all divergences: demographic ones, four times as large, fall further, and not for being demographic."""
    rng = np.random.default_rng(1)
    before = [np.exp(rng.standard_normal(80)) * size for size in (4.0, 1.0)]
    values = [
        PairedValues(before=each, after=np.sqrt(each), categories=["k"] * 80, clusters=[f"{number}{i}" for i in range(80)])
        for number, each in enumerate(before)
    ]
    found = difference_in_differences(*values, seed=0)
    assert found.ratio_of_ratios.bound_high is not None
    assert found.ratio_of_ratios.bound_high < 0.9  # what the verdict asks for
    assert found.at_equal_size.ratio == pytest.approx(1.0, abs=1e-12)


def test_it_is_the_coefficient_of_least_squares() -> None:
    rng = np.random.default_rng(2)
    sides = made(rng, 3.0, 0.9, 0.7, 30), made(rng, 1.0, 0.9, 1.0, 50, 30)
    x = np.log(np.concatenate([each.before_N for each in sides]))
    y = np.log(np.concatenate([each.after_N for each in sides])) - x
    d = np.repeat([1.0, 0.0], [30, 50])
    w = np.sqrt(np.concatenate([each.weight_N for each in sides]))
    expected, *_ = np.linalg.lstsq(np.stack([np.ones(80), x, d], 1) * w[:, None], y * w, rcond=None)
    found = ratio_at_equal_size(*sides)
    assert found.ratio == pytest.approx(math.exp(expected[2]), rel=1e-12)
    without = []
    for left_out in range(80):
        keep = np.arange(80) != left_out
        fit, *_ = np.linalg.lstsq((np.stack([np.ones(80), x, d], 1) * w[:, None])[keep], (y * w)[keep], rcond=None)
        without.append(fit[2])
    error = math.sqrt(79 / 80 * np.square(np.array(without) - np.mean(without)).sum())
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert found.bound_high == pytest.approx(math.exp(expected[2] + stats.t.ppf(0.99, 77) * error), rel=1e-9)


def test_what_both_sides_share_is_left_out_together() -> None:
    rng = np.random.default_rng(3)
    first, second = made(rng, 2.0, 1.0, 0.8, 40), made(rng, 1.0, 1.0, 1.0, 40, 40)
    shock = np.exp(rng.standard_normal(40))
    first = side(first.before_N, first.after_N * shock)
    second = side(second.before_N, second.after_N * shock, 40)
    shared = SizedSide(before_N=second.before_N, after_N=second.after_N, weight_N=second.weight_N, unit_N=first.unit_N)
    apart, together = ratio_at_equal_size(first, second), ratio_at_equal_size(first, shared)
    assert apart.ratio == pytest.approx(together.ratio, rel=1e-12)
    assert apart.standard_error is not None
    assert together.standard_error is not None
    assert together.standard_error < apart.standard_error / 2


@pytest.mark.parametrize("n", [12, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(n: int) -> None:
    rng, draws = np.random.default_rng(4), 400
    inside = below = 0
    for _ in range(draws):
        found = ratio_at_equal_size(made(rng, 3.0, 0.8, 0.7, n), made(rng, 1.0, 0.8, 1.0, n, n))
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.bound_high is not None
        inside += found.ci_low <= 0.7 <= found.ci_high
        below += found.bound_high >= 0.7
    assert 0.92 <= inside / draws <= 0.98  # 0.95 and 2.5 standard errors
    assert below / draws >= 0.975


@pytest.mark.parametrize(
    ("sides", "why"),
    [
        ((side([1, 2], [1, 2]), side(np.arange(1.0, 9.0), np.arange(1.0, 9.0), 9)), "2 demographic clusters are too few"),
        ((side([0.0, *range(1, 9)], range(1, 10)), side(range(1, 9), range(1, 9), 9)), "has no logarithm"),
        ((side([2.0] * 8, range(1, 9)), side(range(1, 9), range(1, 9), 9)), "are of one size"),
    ],
)
def test_why_there_is_none(sides: tuple[SizedSide, SizedSide], why: str) -> None:
    found = ratio_at_equal_size(*sides)
    assert found.ratio is None
    assert why in str(found.not_estimable)


def test_an_error_that_no_number_holds_is_said() -> None:
    """Within a side hardly anything differs in size, and what does changed beyond measure."""
    rng = np.random.default_rng(5)
    sides = [
        side(size * (1 + 1e-6 * rng.random(8)), np.exp(20 * rng.standard_normal(8)), first)
        for size, first in ((2.0, 0), (1.0, 9))
    ]
    found = ratio_at_equal_size(*sides)
    assert (found.ratio, found.not_estimable) == (None, "size and side can hardly be told apart")


def test_nothing_that_changed_is_1_without_an_error() -> None:
    values = np.arange(1.0, 9.0)
    found = ratio_at_equal_size(side(values, values), side(values * 2, values * 2, 9))
    assert (found.ratio, found.bound_high, found.p_value) == (1.0, 1.0, 1.0)
