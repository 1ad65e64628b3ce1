"""McNemar, Wilson, Holm and Benjamini-Hochberg against statsmodels; intervals of sums against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from fairprune_framework.functional import hypothesis_tests as statistics
from fairprune_framework.functional.bootstrap import change_of


@pytest.mark.parametrize(("only_before", "only_after"), [(0, 0), (1, 0), (5, 5), (41, 15), (34, 15), (300, 250), (0, 12)])
def test_mcnemar(only_before: int, only_after: int) -> None:
    expected = peer_mcnemar([[7, only_before], [only_after, 9]], exact=True).pvalue
    assert statistics.mcnemar(only_before, only_after) == pytest.approx(1.0 if only_before + only_after == 0 else expected)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 8), (811, 1508), (20, 20)])
def test_wilson(successes: int, n: int) -> None:
    assert statistics.wilson(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


def test_many_tests_at_once() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 9, 200):
        p = rng.uniform(0, 0.2, size).round(3)  # with ties
        np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1])
        np.testing.assert_allclose(statistics.benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
    assert statistics.holm([]) == statistics.benjamini_hochberg([]) == []


def test_flips_and_what_they_would_have_shown() -> None:
    before = np.array([True] * 50 + [False] * 50)
    after = np.concatenate([[False] * 8 + [True] * 42, [True] * 3 + [False] * 47])
    found = statistics.flips(before, after)
    assert (found.only_before, found.only_after, found.before, found.after) == (8, 3, 50, 45)
    assert found.newly == 0.03
    # The mean of +-1 and 0 over 100 items, of which 11 moved: statsmodels' power of a z test at that difference.
    assert normal_power(found.detectable / np.sqrt(11 / 100), 100, 0.05) == pytest.approx(0.80, abs=0.005)
    with pytest.raises(ValueError, match="at least one item"):
        statistics.flips([], [])


def test_effect_sizes() -> None:
    before, after = np.random.default_rng(1).normal(0, 1, (2, 30))
    t, _ = stats.ttest_rel(after, before)
    assert statistics.paired_effect_size(before, after) == pytest.approx(t / np.sqrt(30))
    assert statistics.cohens_h(0.54, 0.50) == pytest.approx(proportion_effectsize(0.50, 0.54))
    assert statistics.paired_effect_size([1.0, 2.0], [2.0, 3.0]) is None
    detectable = statistics.minimum_detectable_difference(before, after)
    assert detectable is not None
    assert normal_power(detectable / np.std(after - before, ddof=1), 30, 0.05) == pytest.approx(0.80, abs=0.005)


SAMPLES = 250


# -- intervals of sums -----------------------------------------------------------------------------------------------------


def ones(values: object) -> np.ndarray:
    """Summands of a mean."""
    values = np.asarray(values, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], -1)


def test_with_many_clusters_it_is_the_paired_t_interval() -> None:
    before, after = np.random.default_rng(0).gamma(2, 1, (2, 600))
    found = change_of(ones(before), ones(after), range(600)).difference
    expected = stats.ttest_rel(after, before)
    assert found.value == pytest.approx(np.mean(after - before))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_items_of_a_cluster_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(500), 4)
    before, after = rng.normal(0, 1, (2, 500)).repeat(4, 1)
    once = change_of(ones(before[::4]), ones(after[::4]), range(500)).difference
    found = change_of(ones(before), ones(after), cluster.tolist()).difference
    assert (found.low, found.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("clusters", [10, 20, 80])
def test_coverage_of_the_difference_and_of_the_change(clusters: int) -> None:
    """Perplexity-like ratios, skewed: within three standard errors of 95 % in so many samples."""
    rng = np.random.default_rng(7)
    hits = misses = 0
    for _ in range(SAMPLES):
        size = rng.integers(20, 60, clusters)
        base = rng.gamma(4, 0.25, clusters)
        before = np.stack([base * size, size], 1)
        after = np.stack([base * 0.9 * rng.gamma(25, 1 / 25, clusters) * size, size], 1)
        change = change_of(before, after, range(clusters), resamples=200).change
        assert change is not None
        assert change.low is not None
        assert change.high is not None
        hits += change.low <= -0.1 <= change.high
        misses += change.low > -0.1
    assert hits / SAMPLES == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / SAMPLES) ** 0.5)
    assert misses / SAMPLES < 0.06


def test_identical_models_differ_by_exactly_nothing() -> None:
    values = ones(np.random.default_rng(0).normal(1, 1, 50))
    found = change_of(values, values.copy(), range(50))
    for interval in (found.difference, found.change):
        assert interval is not None
        assert (interval.value, interval.low, interval.high, interval.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert found.retention is not None
    assert (found.retention.value, found.retention.low, found.retention.high) == (1.0, 1.0, 1.0)


def test_too_few_clusters_give_no_interval() -> None:
    found = change_of(ones([1, 2, 3]), ones([2, 2, 4]), "abc")
    assert found.few
    assert found.difference.value == pytest.approx(2 / 3)
    assert found.difference.low is found.difference.p_value is None


def test_no_relative_change_from_the_ideal() -> None:
    """53 of 100 cannot be told from one half: nothing is relative to that distance."""
    before = [1] * 53 + [0] * 47
    found = change_of(ones(before), ones([0] * 10 + before[10:]), range(100), ideal=0.5)
    assert found.change is None
    assert found.difference.value == pytest.approx(-0.1)
    assert found.difference.high is not None
    assert found.difference.high < 0


def test_a_change_past_the_ideal_is_measured_as_a_distance() -> None:
    before, after = [1] * 80 + [0] * 20, [1] * 30 + [0] * 70
    found = change_of(ones(before), ones(after), range(100), ideal=0.5)
    assert found.change is not None
    assert found.change.value == pytest.approx((0.2 - 0.3) / 0.3)
    assert found.change.low is not None
    assert found.change.low >= -1
