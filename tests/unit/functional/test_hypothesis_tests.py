"""McNemar, Wilson, Holm and Benjamini-Hochberg against statsmodels; effect sizes against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from fairprune_framework.functional import hypothesis_tests as statistics


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


def test_what_one_item_and_nothing_at_all_say() -> None:
    assert statistics.paired_effect_size([1.0], [2.0]) is None
    assert statistics.minimum_detectable_difference([1.0], [2.0]) is None
    assert statistics.minimum_detectable_difference([1.0, 2.0], [2.0, 3.0]) == 0.0
    assert statistics.paired_effect_size([1.0, 2.0], [2.0, 5.0]) == pytest.approx(2 / np.sqrt(2))
    one = statistics.flips([True], [False])
    assert (one.n, one.only_before, one.only_after, one.p_value, one.newly) == (1, 1, 0, 1.0, 0.0)
    for before, after in (([True], [True, False]), ([[True]], [[False]])):
        with pytest.raises(ValueError, match="two answers for each of at least one item"):
            statistics.flips(before, after)  # type: ignore[arg-type]


def test_where_nobody_changed_sides_one_flip_is_counted() -> None:
    still = statistics.flips([True] * 30 + [False] * 70, [True] * 30 + [False] * 70)
    assert still.p_value == 1.0
    assert still.detectable == statistics.minimum_detectable_flips(100, 1) == statistics.minimum_detectable_flips(100, 0) > 0
    assert statistics.minimum_detectable_flips(100, 4) == pytest.approx(2 * still.detectable)


def test_retention_is_what_is_left_of_what_was_there() -> None:
    assert statistics.retention(0.8, 0.6) == pytest.approx(0.75)
    assert statistics.retention(0.0, 0.6) is None
    assert statistics.retention(0.8, 0.0) == 0.0
