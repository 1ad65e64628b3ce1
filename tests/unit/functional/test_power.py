"""Normal power against statsmodels, and against the interval itself by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import normal_power

from fairprune_framework.functional import power
from fairprune_framework.functional.difference_in_differences import PairedValues, difference_in_differences


@pytest.mark.parametrize(("ratio", "error"), [(0.7, 0.05), (0.7, 0.08), (0.85, 0.02), (0.9, 0.1)])
def test_power_is_statsmodels(ratio: float, error: float) -> None:
    # A one-sided z test at 1 % of an effect of log(0.9 / ratio) with a standard deviation of 1.
    theirs = normal_power(math.log(0.9 / ratio) / error, 1, 0.01, alternative="larger")
    assert power.power_to_show(ratio, error, limit=0.9) == pytest.approx(theirs)


def test_the_functions_agree_with_each_other() -> None:
    spreads, limit = (1.07, 0.40), 0.9
    for correlation in (0.0, 0.39):
        for ratio in (0.5, 0.7, 0.8):
            n = power.templates_to_show(ratio, spreads=spreads, limit=limit, correlation=correlation)
            assert n is not None
            error = power.error_of_difference(n, n, spreads=spreads, shared=n, correlation=correlation)
            less = power.error_of_difference(n - 1, n - 1, spreads=spreads, shared=n - 1, correlation=correlation)
            assert power.power_to_show(ratio, error, limit=limit) >= 0.8 > power.power_to_show(ratio, less, limit=limit)
            assert power.largest_ratio_shown(error, limit=limit) >= ratio > power.largest_ratio_shown(less, limit=limit)
            assert power.growth_to_show(ratio, error, limit=limit) == pytest.approx(1, abs=1.5 / n)
    assert power.templates_to_show(limit, spreads=spreads, limit=limit) is None
    assert power.growth_to_show(0.95, 0.1, limit=limit) is None


def test_the_error_is_that_of_the_estimates() -> None:
    """500 simulations of the mean of log ratios: 48 demographic templates, 30 controls, 20 of them shared."""
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(500):
        d = 0.5 * rng.standard_normal(48)
        c = 0.4 * rng.standard_normal(30)
        c[:20] = 0.4 * (0.6 * d[:20] / 0.5 + 0.8 * rng.standard_normal(20))
        sides = [
            PairedValues(before=np.ones(len(logs)), after=np.exp(logs), categories=[0] * len(logs), clusters=range(len(logs)))
            for logs in (d, c)
        ]
        found = difference_in_differences(*sides, resamples=0)
        estimates.append(math.log(found.geometric.ratio))
    expected = power.error_of_difference(48, 30, spreads=(0.5, 0.4), shared=20, correlation=0.6)
    assert np.std(estimates) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "change", [{"demographic": 0}, {"shared": 11}, {"shared": -1}, {"correlation": 1.1}, {"correlation": math.nan}]
)
def test_misuse(change: dict[str, float]) -> None:
    arguments = {"demographic": 20, "controls": 10, "spreads": (1.0, 1.0), "shared": 5, "correlation": 0.5}
    with pytest.raises(ValueError, match="at least one template on each side"):
        power.error_of_difference(**(arguments | change))


def test_counts_and_correlations_at_their_limits() -> None:
    one = power.error_of_difference(1, 1, spreads=(3.0, 4.0))
    assert one == pytest.approx(5.0)
    for correlation, expected in ((1.0, 1.0), (-1.0, 7.0)):
        assert power.error_of_difference(1, 1, spreads=(3.0, 4.0), shared=1, correlation=correlation) == pytest.approx(expected)
    assert power.error_of_difference(20, 10, spreads=(1.0, 1.0), shared=10, correlation=0.5) == pytest.approx(
        math.sqrt(1 / 20 + 1 / 10 - 10 / 200)
    )
    apart = power.error_of_difference(9, 4, spreads=(1.0, 1.0), correlation=0.7)
    assert apart == power.error_of_difference(9, 4, spreads=(1.0, 1.0))  # nothing is shared where nothing is said
    same = power.error_of_difference(7, 7, spreads=(0.3, 0.3), shared=7, correlation=1.0)
    assert same == pytest.approx(0.0, abs=1e-9)  # what moves both alike is no difference, and no root of less than 0 is drawn


def test_eighty_percent_power_below_one_where_nothing_else_is_said() -> None:
    ratio = power.largest_ratio_shown(0.1)
    assert ratio == power.largest_ratio_shown(0.1, limit=1.0, power=0.8)
    assert power.power_to_show(ratio, 0.1) == pytest.approx(0.8)
    assert power.growth_to_show(ratio, 0.1) == pytest.approx(1.0)
    n = power.templates_to_show(ratio, spreads=(0.3, 0.4))
    assert n == math.ceil((0.5 / 0.1) ** 2)
    assert power.templates_to_show(1e-9, spreads=(1e-3, 1e-3)) == 1  # one template is the least
    assert power.templates_to_show(1.0, spreads=(1.0, 1.0)) is power.growth_to_show(1.0, 0.1) is None
