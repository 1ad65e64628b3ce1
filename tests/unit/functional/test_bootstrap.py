"""Intervals of statistics of sums, against scipy, invariances and simulated coverage."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from fairprune_framework.functional.bootstrap import (
    BOOTSTRAP_CLUSTERS,
    Interval,
    StatisticChange,
    change_of,
    mean,
)
from fairprune_framework.functional.paired_bootstrap import RESAMPLES

SAMPLES = 250


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


def jackknife(values: list[float]) -> float:
    """Standard error from the values of a statistic without each of the clusters."""
    return math.sqrt((len(values) - 1) / len(values) * sum((value - sum(values) / len(values)) ** 2 for value in values))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_is_bootstrap_t_in_plain_loops(level: float) -> None:
    """Nine clusters drawn 39 times: each resample is written out, and each of its clusters left out in turn."""
    n, resamples, seed = 9, 39, 3
    rng = np.random.default_rng(1)
    before, after = rng.gamma(2, 1, (2, n))
    changes = (after - before).tolist()
    value, error = sum(changes) / n, jackknife([float(np.delete(after - before, k).mean()) for k in range(n)])
    drawn = np.random.Generator(np.random.PCG64(seed)).multinomial(n, np.full(n, 1 / n), size=resamples)
    distances = []
    for counts in drawn.tolist():
        resample = [change for change, count in zip(changes, counts, strict=True) for _ in range(count)]
        left_out = [(sum(resample) - one) / (n - 1) for one in resample]
        distances.append(abs(sum(resample) / n - value) / jackknife(left_out))
    most = round((1 - level) * (resamples + 1))  # so many t* may lie at or beyond the end, the data counted among them
    reach = sorted(distances, reverse=True)[most - 1] * error
    found = change_of(ones(before), ones(after), range(n), resamples=resamples, seed=seed, level=level).difference
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((value - reach, value + reach), rel=1e-9)
    beyond = sum(distance >= abs(value) / error for distance in distances)
    assert found.p_value == pytest.approx((1 + beyond) / (1 + resamples), rel=1e-12)


def test_the_change_is_the_interval_of_the_log_ratio() -> None:
    """exp of an interval around log R: as far up as down, in factors; and the same of after / before where the ideal is 0."""
    rng = np.random.default_rng(6)
    before = rng.gamma(9, 1 / 9, 30)
    found = change_of(ones(before), ones(0.8 * before * rng.gamma(50, 1 / 50, 30)), range(30))
    assert found.change is not None
    assert found.retention is not None
    assert found.change.low is not None
    assert found.change.high is not None
    ratio = found.after / found.before
    assert found.change.value == pytest.approx(ratio - 1)
    assert (1 + found.change.high) / ratio == pytest.approx(ratio / (1 + found.change.low), rel=1e-9)
    moved = [None if end is None else end - 1 for end in (found.retention.value, found.retention.low, found.retention.high)]
    assert moved == pytest.approx([found.change.value, found.change.low, found.change.high])


@pytest.mark.parametrize(("clusters", "few"), [(7, True), (8, False)])
def test_eight_clusters_are_enough(clusters: int, few: bool) -> None:
    before, after = np.random.default_rng(4).gamma(2, 1, (2, clusters))
    found = change_of(ones(before), ones(after), range(clusters))
    assert found.few is few
    assert (found.difference.low is None) is few
    same = change_of(ones(before), ones(before), range(clusters)).difference
    assert (same.low, same.high, same.p_value) == ((None, None, 1.0) if few else (0.0, 0.0, 1.0))


def test_one_cluster_has_no_error() -> None:
    found = change_of(ones([1, 2]), ones([2, 5]), "aa")
    assert (found.difference.value, found.difference.standard_error, found.detectable) == (2.0, None, None)
    assert found.change is not None
    assert found.change.value == pytest.approx(7 / 3 - 1)


def test_nothing_is_kept_of_nothing() -> None:
    """Before is 0: neither a change nor a retention can be relative to it."""
    before = [1.0, -1.0] * 10
    found = change_of(ones(before), ones([2.0, 0.0] * 10), range(20))
    assert (found.before, found.retention, found.change) == (0.0, None, None)
    assert found.difference.value == 1.0


def test_a_ratio_without_a_logarithm_falls_to_minus_one_at_most() -> None:
    """After lies on both sides of 0 from resample to resample."""
    rng = np.random.default_rng(8)
    before, after = rng.gamma(9, 1 / 9, 12), rng.normal(0.05, 0.6, 12)
    found = change_of(ones(before), ones(after), range(12)).change
    assert found is not None
    assert found.low == -1.0
    assert found.high is not None
    assert found.high - found.value > found.value - found.low
    assert found.value == pytest.approx(abs(after.mean()) / before.mean() - 1)


def test_identical_models_differ_by_exactly_nothing() -> None:
    values = ones(np.random.default_rng(0).normal(1, 1, 50))
    found = change_of(values, values.copy(), range(50))
    for interval in (found.difference, found.change):
        assert interval is not None
        assert (interval.value, interval.low, interval.high, interval.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert found.retention is not None
    assert (found.retention.value, found.retention.low, found.retention.high) == (1.0, 1.0, 1.0)


def test_the_smallest_p_value_is_that_of_the_resamples_named() -> None:
    """Every cluster moves alike: no resample is as far from 0, and the p-value is (1 + 0) / (1 + resamples)."""
    before = np.random.default_rng(0).normal(1, 1, 50)
    assert change_of(ones(before), ones(before + 1), range(50)).difference.p_value == 1 / (RESAMPLES + 1) == 1 / 2001
    assert change_of(ones(before), ones(before + 1), range(50), resamples=199).difference.p_value == 1 / 200


@pytest.mark.parametrize("clusters", [12, BOOTSTRAP_CLUSTERS, BOOTSTRAP_CLUSTERS + 50])
def test_the_p_value_is_small_exactly_where_the_interval_excludes_nothing(clusters: int) -> None:
    before, noise = np.random.default_rng(5).gamma(4, 0.5, (2, clusters))
    seen = set()
    for shift in (0.0, 0.1, 0.5, 2.0):
        found = change_of(ones(before), ones(before + shift + noise - noise.mean()), range(clusters), resamples=199).difference
        assert found.low is not None
        assert found.high is not None
        assert found.p_value is not None
        assert 0 < found.p_value <= 1
        assert (found.p_value <= 0.05) == (not found.low <= 0 <= found.high)
        seen.add(found.p_value <= 0.05)
    assert seen == {True, False}


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


def test_the_jackknife_error_is_that_of_the_mean() -> None:
    """Of a mean over clusters of one item the jackknife error is s / sqrt(n)."""
    before, after = np.random.default_rng(3).normal(0, 1, (2, 40))
    found = change_of(ones(before), ones(after), range(40)).difference
    assert found.standard_error == pytest.approx(stats.sem(after - before))


def test_the_switch_to_the_t_quantile_is_seamless() -> None:
    """Just below and just above the number of clusters where resampling ends, on the same kind of data."""
    rng = np.random.default_rng(5)
    before, after = rng.gamma(3, 1, (2, BOOTSTRAP_CLUSTERS + 1))
    drawn = change_of(ones(before[:-1]), ones(after[:-1]), range(BOOTSTRAP_CLUSTERS)).difference
    exact = change_of(ones(before), ones(after), range(BOOTSTRAP_CLUSTERS + 1)).difference
    assert drawn.low is not None
    assert drawn.high is not None
    assert exact.low is not None
    assert exact.high is not None
    assert drawn.high - drawn.low == pytest.approx(exact.high - exact.low, rel=0.08)


def test_another_statistic_of_sums() -> None:
    """A perplexity is exp(-log p / words): its value from the pooled items, not a mean of the items' own."""
    rng = np.random.default_rng(11)
    words = rng.integers(5, 50, 30).astype(float)
    log_p = -words * rng.gamma(4, 0.5, (2, 30))

    def perplexity(sums: np.ndarray) -> np.ndarray:
        return np.exp(-sums[..., 0] / sums[..., 1])

    found = change_of(*(np.stack([each, words], 1) for each in log_p), range(30), perplexity)
    expected = [math.exp(-each.sum() / words.sum()) for each in log_p]
    assert (found.before, found.after) == pytest.approx(tuple(expected))
    assert found.change is not None
    assert found.retention is not None
    assert found.change.value == pytest.approx(expected[1] / expected[0] - 1)
    assert found.retention.value == pytest.approx(expected[1] / expected[0])
    assert found.detectable == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * found.difference.standard_error, rel=1e-3
    )


def test_labels_alone_decide_the_clusters() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(0, 1, (2, 60))
    labels = [f"t{i % 12}" for i in range(60)]
    order = rng.permutation(60)
    found = change_of(ones(before), ones(after), labels)
    again = change_of(ones(before[order]), ones(after[order]), [labels[i] for i in order])
    assert found.clusters == again.clusters == 12
    assert (found.difference.low, found.difference.high) == pytest.approx((again.difference.low, again.difference.high))


@pytest.mark.parametrize(
    ("before", "after", "labels", "words"),
    [
        (np.ones((3, 2)), np.ones((2, 2)), 3, "twice"),
        (np.ones(3), np.ones(3), 3, "twice"),
        (np.ones((3, 2)), np.ones((3, 2)), 2, "2 labels"),
        (np.ones((0, 2)), np.ones((0, 2)), 0, "0 labels"),
        (np.full((9, 2), np.nan), np.ones((9, 2)), 9, "finite"),
    ],
)
def test_what_is_refused(before: np.ndarray, after: np.ndarray, labels: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        change_of(before, after, range(labels))


def test_mean_of_nothing_is_not_a_number() -> None:
    assert np.isnan(mean(np.zeros(2)))
    assert mean(np.array([[3.0, 4.0], [1.0, 2.0]])).tolist() == [0.75, 0.5]


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_of_the_change_is_that_of_the_log_ratio_in_plain_loops(level: float) -> None:
    n, resamples, seed = 9, 39, 5
    rng = np.random.default_rng(3)
    before = rng.uniform(1, 2, n)
    after = before * rng.uniform(0.6, 1.1, n)

    def ratio(rows: list[int]) -> float:
        return sum(after[i] for i in rows) / sum(before[i] for i in rows)

    def without_each(rows: list[int]) -> list[float]:
        return [ratio(rows[:at] + rows[at + 1 :]) for at in range(len(rows))]

    every = list(range(n))
    value, error = math.log(ratio(every)), jackknife([math.log(one) for one in without_each(every)])
    distances = []
    for counts in np.random.Generator(np.random.PCG64(seed)).multinomial(n, np.full(n, 1 / n), size=resamples).tolist():
        rows = [i for i, count in enumerate(counts) for _ in range(count)]
        spread = jackknife([math.log(one) for one in without_each(rows)])
        distances.append(abs(math.log(ratio(rows)) - value) / spread)
    reach = sorted(distances, reverse=True)[round((1 - level) * (resamples + 1)) - 1] * error
    found = change_of(ones(before), ones(after), every, resamples=resamples, seed=seed, level=level).change
    assert found is not None
    assert found.value == pytest.approx(math.exp(value) - 1)
    assert (found.low, found.high) == pytest.approx((math.exp(value - reach) - 1, math.exp(value + reach) - 1), rel=1e-9)
    assert found.standard_error == pytest.approx(jackknife(without_each(every)), rel=1e-9)
    beyond = sum(distance >= abs(value) / error for distance in distances)
    assert found.p_value == pytest.approx((1 + beyond) / (1 + resamples), rel=1e-12)


def test_two_clusters_have_an_error() -> None:
    """Differences of 1 and 3: without either the mean is the other."""
    found = change_of(ones([1, 2]), ones([2, 5]), "ab")
    assert found.difference.standard_error == pytest.approx(1.0)
    assert found.detectable == pytest.approx(2.8)
    assert (found.n, found.clusters) == (2, 2)


def test_above_four_hundred_clusters_nothing_is_drawn() -> None:
    before, after = np.random.default_rng(1).gamma(9, 1 / 9, (2, 401))
    whole = change_of(ones(before), ones(after), range(401), resamples=39).difference
    assert whole.p_value == pytest.approx(stats.ttest_rel(after, before).pvalue)
    drawn = change_of(ones(before[:400]), ones(after[:400]), range(400), resamples=39).difference
    assert drawn.p_value is not None
    assert drawn.p_value * 40 == pytest.approx(round(drawn.p_value * 40), abs=1e-9)


@pytest.mark.parametrize(("errors", "told"), [(1.95, False), (2.05, True), (-2.05, True), (-1.95, False)])
def test_the_ideal_is_two_standard_errors_away_or_nothing_is_relative_to_it(errors: float, told: bool) -> None:
    before = np.random.default_rng(7).normal(size=40)
    before += errors * stats.sem(before) - before.mean()
    found = change_of(ones(before + 1), ones(before + 2), range(40), ideal=1.0)
    assert (found.change is not None) == told
    if found.change is not None:
        away = errors * stats.sem(before)
        assert found.change.value == pytest.approx((abs(1 + away) - abs(away)) / abs(away))


def test_a_statistic_of_nothing_has_no_interval() -> None:
    """Column 1 adds up to 0: there are no items, and so no mean."""
    before = np.stack([np.arange(12.0), np.ones(12)], 1)
    found = change_of(before, before * [1.0, 0.0], range(12))
    assert not math.isfinite(found.difference.value)
    assert (found.difference.low, found.difference.high, found.difference.p_value) == (None, None, None)


def test_what_is_not_said() -> None:
    before, after = np.random.default_rng(9).gamma(2, 1, (2, 12))
    columns = (ones(before), ones(after), range(12))
    assert change_of(*columns) == change_of(*columns, mean, ideal=0.0, resamples=2000, seed=0, level=0.95)
    assert change_of(*columns) != change_of(*columns, seed=1)


def test_results_are_made_by_name_and_do_not_change() -> None:
    before, after = np.random.default_rng(9).gamma(2, 1, (2, 12))
    found = change_of(ones(before), ones(after), range(12))
    for kind, made in ((StatisticChange, found), (Interval, found.difference)):
        with pytest.raises(TypeError, match="positional"):
            kind(*vars(made).values())
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.value = made.n = 1  # type: ignore[attr-defined]


def test_an_interval_moves_as_a_whole() -> None:
    interval = Interval(value=1.0, low=0.5, high=2.0, standard_error=0.3, p_value=0.04)
    assert interval.plus(2.0) == dataclasses.replace(interval, value=3.0, low=2.5, high=4.0)
    bare = Interval(value=1.0, low=None, high=None, standard_error=None, p_value=None)
    assert bare.plus(-1.0) == dataclasses.replace(bare, value=0.0)
