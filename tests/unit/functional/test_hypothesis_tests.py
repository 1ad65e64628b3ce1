"""McNemar, Wilson, Holm and Benjamini-Hochberg against statsmodels; effect sizes against scipy."""

from __future__ import annotations

import dataclasses

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


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_wilson_at_other_levels(level: float) -> None:
    expected = proportion_confint(7, 40, alpha=1 - level, method="wilson")
    assert statistics.wilson(7, 40, level) == pytest.approx(expected, abs=1e-12)
    assert statistics.wilson(7, 40) == statistics.wilson(7, 40, 0.95)
    for successes, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="successes of 0 to n"):
            statistics.wilson(successes, n)


def test_items_that_share_a_template_count_as_the_number_that_they_are_worth() -> None:
    rng = np.random.default_rng(3)
    sizes = [1, 2, 5, 3, 7, 4, 6, 2, 8, 1, 5, 6]
    answers = [bool(rng.random() < p) for size, p in zip(sizes, rng.beta(1, 1, len(sizes)), strict=True) for _ in range(size)]
    clusters = [f"t{number}" for number, size in enumerate(sizes) for _ in range(size)]
    n, m, share = len(answers), len(sizes), sum(answers) / len(answers)
    residuals = [sum(a - share for a, c in zip(answers, clusters, strict=True) if c == f"t{number}") for number in range(m)]
    clustered = m / (m - 1) * sum(one**2 for one in residuals) / n**2
    alone = share * (1 - share) / (n - 1)
    effective = n / (clustered / alone) * (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, m - 1)) ** 2
    assert m / 2 < effective < 0.6 * n
    expected = proportion_confint(share * effective, effective, method="wilson")
    assert statistics.clustered_wilson(answers, clusters) == pytest.approx(expected)
    shuffled = rng.permutation(n)
    again = statistics.clustered_wilson([answers[index] for index in shuffled], [clusters[index] for index in shuffled])
    assert again == pytest.approx(expected)


def test_items_of_their_own_have_wilson_and_repeated_ones_that_of_their_clusters() -> None:
    answers = [number % 3 == 0 for number in range(30)]
    assert statistics.clustered_wilson(answers, range(30)) == statistics.wilson(10, 30)
    low, high = statistics.clustered_wilson(answers * 4, [*range(30)] * 4)  # the same evidence, four times over
    of_thirty = statistics.wilson(10, 30)
    assert low <= of_thirty[0] + 0.003
    assert high >= of_thirty[1] - 0.003
    assert statistics.clustered_wilson([True] * 40, [number // 10 for number in range(40)]) == statistics.wilson(4, 4)
    assert statistics.clustered_wilson([True] * 30 + [False] * 10, ["one"] * 40) == pytest.approx(statistics.wilson(0.75, 1))
    for wrong in (([True], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="at least one item"):
            statistics.clustered_wilson(*wrong)


def test_the_interval_of_clustered_items_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    clusters = [number // 8 for number in range(240)]
    covered = np.zeros(2)
    for _ in range(400):
        share = rng.beta(1.2, 0.8, 30)  # mean 0.6, and templates that differ
        answers = [bool(answer) for answer in rng.random(240) < np.repeat(share, 8)]
        intervals = statistics.wilson(sum(answers), 240), statistics.clustered_wilson(answers, clusters)
        covered += [low < 0.6 < high for low, high in intervals]
    items, clustered = covered / 400
    assert items < 0.75  # what taking each item as evidence of its own does
    assert 0.925 < clustered < 0.975


def test_adjusted_p_values_stay_at_most_1_and_in_their_order() -> None:
    assert statistics.holm([0.9, 0.6]) == [1.0, 1.0]
    assert statistics.holm([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert statistics.benjamini_hochberg([0.04, 0.01, 0.5]) == pytest.approx([0.06, 0.03, 0.5])


def test_effect_sizes_by_hand() -> None:
    """asin(sqrt(1)) is pi / 2, asin(sqrt(1/2)) is pi / 4."""
    assert statistics.cohens_h(0.5, 1.0) == pytest.approx(np.pi / 2)
    assert statistics.cohens_h(1.0, 0.0) == pytest.approx(-np.pi)
    assert statistics.paired_effect_size([3.0, 1.0], [0.0, 0.0]) == pytest.approx(-2 / np.sqrt(2))
    assert statistics.minimum_detectable_flips(50, 9) == pytest.approx(2.8 * 3 / 50)
    assert statistics.minimum_detectable_difference([0.0, 0.0], [1.0, 3.0]) == pytest.approx(2.8 * np.sqrt(2) / np.sqrt(2))


def test_flips_are_made_by_name_and_do_not_change() -> None:
    found = statistics.flips([True, False], [False, False])
    with pytest.raises(TypeError, match="positional"):
        statistics.Flips(*vars(found).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.n = 3  # type: ignore[misc]
