"""The paired bootstrap against hand-computed means, brute-force jackknives, scipy, invariances and simulated coverage."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from fairprune_framework.functional.paired_bootstrap import (
    MIN_CLUSTERS,
    TOO_WIDE,
    PairedChange,
    minimum_detectable_change,
    paired_change,
)


def sample(n: int = 12, *, seed: int = 0, contrasts: int = 3, categories: int = 3, factor: float = 0.7):
    """Lognormal values, as (before, after, categories, clusters)."""
    rng = np.random.default_rng(seed)
    before = np.exp(rng.standard_normal((n, 1)) + 0.4 * rng.standard_normal((n, contrasts)))
    after = factor * before * np.exp(0.4 * rng.standard_normal((n, 1)))
    labels = [f"C{i % categories}" for i in range(n) for _ in range(contrasts)]
    templates = [f"T{i}" for i in range(n) for _ in range(contrasts)]
    return before.ravel(), after.ravel(), labels, templates


def bounds(result: PairedChange) -> tuple[float, float, float]:
    assert result.ci_low is not None
    assert result.ci_high is not None
    assert result.p_value is not None
    return result.ci_low, result.ci_high, result.p_value


def test_macro_means_by_hand():
    # age: T1 = mean(1, 3) = 2, T2 = 6, mean 4; race: T1 = 10 (another cluster than age's T1). Macro: 7, not 5, not 6.
    # after: age T1 = 1, T2 = 3, mean 2; race 5; macro 3.5.
    found = paired_change([1.0, 3.0, 6.0, 10.0], [0.5, 1.5, 3.0, 5.0], ["age", "age", "age", "race"], ["T1", "T1", "T2", "T1"])
    assert (found.before, found.after, found.difference, found.change) == (7.0, 3.5, -3.5, -0.5)
    assert (found.n, found.clusters) == (4, 3)


def test_standard_error_is_the_brute_force_jackknife():
    before, after, labels, templates = sample(11, contrasts=1, categories=3)
    count = {c: labels.count(c) for c in labels}
    weight = np.array([1 / (len(count) * count[c]) for c in labels])
    wb, wa = weight * before, weight * after
    left_out = (wa.sum() - wa) / (wb.sum() - wb)
    expected = math.sqrt(10 / 11 * ((left_out - wa.sum() / wb.sum()) ** 2).sum())
    assert paired_change(before, after, labels, templates).standard_error == pytest.approx(expected, rel=1e-12)


def test_constant_before_gives_the_classical_error_of_a_mean():
    after = np.random.default_rng(3).uniform(0.2, 0.8, 20)
    found = paired_change(np.full(20, 2.0), after, ["c"] * 20, range(20))
    assert found.change == pytest.approx(after.mean() / 2 - 1)
    assert found.standard_error == pytest.approx(stats.sem(after) / 2, rel=1e-12)


def test_agrees_with_scipy_where_both_are_asymptotic():
    before, after, labels, templates = sample(400, contrasts=1, categories=1, seed=5)
    found = paired_change(before, after, labels, templates, seed=1)
    low, high, _ = bounds(found)

    def ratio(b, a, axis):
        return a.mean(axis) / b.mean(axis) - 1

    theirs = stats.bootstrap(
        (before, after), ratio, paired=True, vectorized=True, n_resamples=4000, rng=np.random.default_rng(2)
    )
    assert found.standard_error == pytest.approx(theirs.standard_error, rel=0.1)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.4 * theirs.standard_error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.4 * theirs.standard_error)


def test_order_of_rows_does_not_matter_to_the_last_bit():
    columns = sample(15)
    order = np.random.default_rng(4).permutation(len(columns[0]))
    shuffled = [[column[i] for i in order] for column in columns]
    assert paired_change(*shuffled, seed=7) == paired_change(*columns, seed=7)


def test_seed_decides():
    columns = sample()
    assert paired_change(*columns, seed=1) == paired_change(*columns, seed=1)
    assert paired_change(*columns, seed=1) != paired_change(*columns, seed=2)


@pytest.mark.parametrize("factor", [1e-9, 3.0, 1e6])
def test_the_unit_does_not_matter(factor):
    before, after, *labels = sample()
    found, scaled = paired_change(before, after, *labels), paired_change(factor * before, factor * after, *labels)
    assert scaled.change == pytest.approx(found.change)
    assert bounds(scaled) == pytest.approx(bounds(found))
    assert scaled.difference == pytest.approx(factor * found.difference)


def test_ideal_is_a_shift_and_its_side_does_not_matter():
    before, after, *labels = sample()
    plain = paired_change(before, after, *labels)
    above = paired_change(before + 0.5, after + 0.5, *labels, ideal=0.5)
    below = paired_change(0.5 - before, 0.5 - after, *labels, ideal=0.5)
    crossed = paired_change(0.5 + before, 0.5 - after, *labels, ideal=0.5)
    for other in (above, below, crossed):
        assert other.change == pytest.approx(plain.change)
        assert bounds(other) == pytest.approx(bounds(plain), rel=1e-6)
    assert below.difference == pytest.approx(-plain.difference)


def test_before_and_after_exchanged_mirror_the_p_value():
    # log(A / B) changes sign alone when the two are exchanged; only the error's leverage knows which is which.
    before, after, *labels = sample(30, factor=0.9)
    there, back = paired_change(before, after, *labels), paired_change(after, before, *labels)
    assert there.p_value == pytest.approx(back.p_value, abs=0.05)


def test_identical_inputs_change_nothing_at_all():
    before, _, *labels = sample()
    found = paired_change(before, before.copy(), *labels)
    assert (found.difference, found.change, found.standard_error) == (0.0, 0.0, 0.0)
    assert bounds(found) == (0.0, 0.0, 1.0)


def test_the_same_factor_everywhere_leaves_no_width():
    before, _, *labels = sample()
    found = paired_change(before, 0.3 * before, *labels, resamples=999)
    assert bounds(found) == pytest.approx((-0.7, -0.7, 0.001))


def test_resamples_without_variation_are_survived():
    # One changed cluster of ten: a third of the resamples never draw it, and their own standard error is 0.
    before, after = np.linspace(1, 2, 10), np.linspace(1, 2, 10)
    after[4] *= 0.5
    low, high, p = bounds(paired_change(before, after, ["c"] * 10, range(10)))
    assert low < -0.05 < 0 < high
    assert p > 0.05


@pytest.mark.parametrize("n", [1, 2, MIN_CLUSTERS - 1, MIN_CLUSTERS])
def test_few_clusters_give_no_interval(n):
    found = paired_change(*sample(n, categories=1))
    assert found.change is not None
    assert [value is None for value in (found.ci_low, found.ci_high, found.p_value)] == [n < MIN_CLUSTERS] * 3
    assert (found.standard_error is None) == (n == 1)


def test_no_relative_change_from_the_ideal():
    found = paired_change(np.zeros(8), np.ones(8), ["c"] * 8, range(8))
    assert (found.difference, found.change, found.ci_low, found.p_value, found.standard_error) == (1.0, None, None, None, None)
    assert minimum_detectable_change(found) is None


def test_before_that_cannot_be_told_from_the_ideal_gives_no_interval():
    before = np.zeros(10)
    before[0] = 1.0  # a third of the resamples have no base at all
    found = paired_change(before, np.ones(10), ["c"] * 10, range(10))
    assert found.change == pytest.approx(9.0)
    assert (found.ci_low, found.ci_high, found.p_value) == (None, None, None)


def test_after_at_the_ideal_falls_back_to_the_plain_ratio():
    before, after, *labels = sample(12, contrasts=1)
    after[3:] = 0.0  # most resamples still hold a positive value, some hold none: no logarithm
    low, high, p = bounds(paired_change(before, after, *labels))
    assert -1 <= low < high < 0
    assert p < 0.05


def test_a_value_with_a_sign_may_turn() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(2.0, 0.4, 40)
    after = -1.5 * before + rng.normal(0, 0.2, 40)
    found = paired_change(before, after, ["c"] * 40, range(40), signed=True)
    assert found.change == pytest.approx(after.sum() / before.sum() - 1)
    low, high, p_value = bounds(found)
    assert low < found.change < high < -2
    assert p_value < 0.01
    # Without a sign it is the distance that grew.
    assert paired_change(before, after, ["c"] * 40, range(40)).change == pytest.approx(-found.change - 2)
    none = paired_change(-before, after, ["c"] * 40, range(40), signed=True)
    assert (none.change, none.ci_low) == (None, None)
    assert "not above 0" in str(none.not_estimable)


def test_one_sided_bounds_are_the_ends_of_the_98_percent_interval():
    for factor in (0.6, 1.0, 1.3):
        columns = sample(14, factor=factor)
        found, wider = paired_change(*columns), paired_change(*columns, level=0.98)
        assert (found.bound_low, found.bound_high) == (wider.ci_low, wider.ci_high)
        assert found.bound_low < found.ci_low < found.change < found.ci_high < found.bound_high
        assert found.not_estimable is None
    few = paired_change(*sample(14), resamples=40)
    assert (few.bound_low, few.bound_high) == (None, None)
    assert few.ci_low is not None


def test_the_bound_is_rarely_below_the_truth():
    """400 simulations of 20 lognormal clusters at a nominal 1 %; its binomial error is 0.5 points."""
    rng = np.random.default_rng(8)
    simulations, n, truth = 400, 20, 0.8 * math.exp(0.3**2 / 2) - 1
    before = np.exp(0.8 * rng.standard_normal((simulations, n)))
    after = 0.8 * before * np.exp(0.3 * rng.standard_normal((simulations, n)))
    found = [paired_change(before[i], after[i], ["c"] * n, range(n), resamples=399, seed=i) for i in range(simulations)]
    told = [one for one in found if one.bound_low is not None and one.bound_high is not None]
    assert len(told) > 0.98 * simulations
    assert sum(one.bound_high < truth for one in told) / simulations < 0.03
    assert sum(one.bound_low > truth for one in told) / simulations < 0.03


def test_an_interval_wider_than_the_span_of_all_ratios_is_not_estimable():
    # One cluster holds nearly the whole mean: nothing is known about it but its own ratio.
    before = np.r_[100.0, np.ones(9)]
    after = before * np.r_[1.5, np.linspace(0.7, 0.9, 9)]
    found = paired_change(before, after, ["c"] * 10, range(10))
    assert math.log1p(found.ci_high) - math.log1p(found.change) > math.log(1.5 / 0.7)
    assert found.not_estimable == TOO_WIDE
    assert (found.bound_low, found.bound_high) == (None, None)
    fell = paired_change(before, before * np.r_[0.9, np.linspace(1.2, 1.4, 9)], ["c"] * 10, range(10))
    assert fell.change < 0
    assert fell.not_estimable == TOO_WIDE
    # Ratios of 0.97 to 1 say that little changed; an interval from -7 % to +4 % says less.
    before = np.r_[8.0, np.ones(9)]
    narrow = paired_change(before, before * np.r_[0.97, np.linspace(0.98, 1.0, 9)], ["c"] * 10, range(10))
    assert -0.1 < narrow.ci_low < 0 < narrow.ci_high < 0.1
    assert narrow.not_estimable == TOO_WIDE


def test_a_wide_interval_that_shows_something_is_kept():
    before = np.r_[100.0, np.ones(9)]
    after = 1e-5 * before * np.r_[1.5, np.linspace(0.7, 0.9, 9)]
    found = paired_change(before, after, ["c"] * 10, range(10))
    assert found.ci_high < 0
    assert math.log1p(found.ci_high) - math.log1p(found.change) > math.log(1.5 / 0.7)
    assert found.not_estimable is None
    assert found.bound_high < 0


def test_why_there_is_no_interval():
    assert paired_change(*sample(3)).not_estimable == "3 clusters are too few for an interval; 8 are needed"
    assert paired_change(*sample(12), resamples=0).not_estimable == "no resamples were asked for"
    assert "is the ideal" in paired_change(np.zeros(8), np.ones(8), ["c"] * 8, range(8)).not_estimable
    seldom = np.r_[1.0, np.zeros(9)]
    assert "some resamples" in paired_change(seldom, np.ones(10), ["c"] * 10, range(10)).not_estimable


@pytest.mark.parametrize("factor", [0.6, 0.8, 0.85, 0.9, 1.0, 1.3])
def test_interval_and_p_value_agree(factor):
    for seed in range(20):
        low, high, p = bounds(paired_change(*sample(10, seed=seed, factor=factor), resamples=499, seed=seed))
        assert (p <= 0.05) == (not low <= 0 <= high)


@pytest.mark.parametrize("n", [10, 20, 40])
def test_coverage(n):
    """400 simulations: the binomial error of 95 % is 1.1 points; the bound of 4 points is 3.7 of them."""
    rng = np.random.default_rng(n)
    simulations, truth = 400, 0.8 * math.exp(0.3**2 / 2) - 1
    before = np.exp(0.8 * rng.standard_normal((simulations, n)))
    after = 0.8 * before * np.exp(0.3 * rng.standard_normal((simulations, n)))
    labels = [f"C{i % 4}" for i in range(n)]
    hits = 0
    for i in range(simulations):
        low, high, _ = bounds(paired_change(before[i], after[i], labels, range(n), resamples=399, seed=i))
        hits += low <= truth <= high
    assert hits / simulations == pytest.approx(0.95, abs=0.04)


def test_minimum_detectable_change_is_2_8_standard_errors():
    found = paired_change(*sample())
    assert found.standard_error is not None
    assert minimum_detectable_change(found) == pytest.approx(2.8 * found.standard_error)


def test_the_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        paired_change(*sample()).n = 3


def test_blocks_of_resamples_change_nothing(monkeypatch):
    columns = sample()
    whole = paired_change(*columns)
    monkeypatch.setattr("fairprune_framework.functional.paired_bootstrap._BLOCK", 12 * 7)
    assert bounds(paired_change(*columns)) == pytest.approx(bounds(whole), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": [1.0, 2.0]}, r"one entry per contrast.*'before': 3, 'after': 2"),
        ({"clusters": ["T"]}, r"'clusters': 1"),
        ({"before": [], "after": [], "categories": [], "clusters": []}, r"at least one"),
        ({"before": [[1.0, 2.0, 3.0]]}, r"'before'.*Got shape \(1, 3\)"),
        ({"before": [1.0, math.nan, 3.0]}, r"'before'.*finite. Got nan at index 1 \(1 of 3 values\)"),
        ({"after": [1.0, 2.0, math.inf]}, r"'after'.*finite. Got inf at index 2"),
        ({"resamples": 10}, r"resamples=10"),
        ({"level": 1.0}, r"level=1.0"),
        ({"level": 0.0}, r"level=0.0"),
    ],
)
def test_misuse(change, message):
    arguments = {"before": [1.0, 2.0, 3.0], "after": [1.0, 2.0, 3.0], "categories": ["c"] * 3, "clusters": ["a", "b", "c"]}
    with pytest.raises(ValueError, match=message):
        paired_change(**(arguments | change))


def test_the_smallest_p_value_names_the_resamples() -> None:
    """Every cluster changes by the same factor, as no resample without a change would: (1 + 0) / (1 + resamples)."""
    before = np.linspace(1, 2, 20)
    found = paired_change(before, before / 2, ["k"] * 20, range(20))
    assert found.p_value == 1 / 2001
    assert paired_change(before, before / 2, ["k"] * 20, range(20), resamples=199).p_value == 1 / 200


def replayed(after: np.ndarray, before: np.ndarray, resamples: int, seed: int, logarithmic: bool) -> tuple[float, float, list]:
    """The ratio of the sums, its jackknife error, and |t*| of every resample: each one is written out, and each draw left out in turn."""

    def error_of(rows: list[int]) -> float:
        a, b = sum(after[i] for i in rows), sum(before[i] for i in rows)
        moves = [(a - after[i]) / (b - before[i]) - a / b for i in rows]
        return math.sqrt((len(rows) - 1) / len(rows) * sum(move**2 for move in moves))

    n = len(before)
    ratio = after.sum() / before.sum()
    drawn = np.random.Generator(np.random.PCG64(seed)).multinomial(n, np.full(n, 1 / n), size=resamples)
    distances = []
    for counts in drawn.tolist():
        rows = [i for i, count in enumerate(counts) for _ in range(count)]
        again = sum(after[i] for i in rows) / sum(before[i] for i in rows)
        off = math.log(again / ratio) * again if logarithmic else again - ratio
        distances.append(abs(off) / error_of(rows))
    return ratio, error_of(list(range(n))), sorted(distances, reverse=True)


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_interval_bounds_and_p_value_in_plain_loops(level: float, logarithmic: bool) -> None:
    n, resamples, seed = 9, 59, 3
    rng = np.random.default_rng(2)
    before = rng.uniform(1, 2, n)
    after = before * rng.uniform(0.6, 1.1, n) if logarithmic else before * rng.normal(0.2, 0.5, n)
    ratio, error, distances = replayed(after, before, resamples, seed, logarithmic)
    found = paired_change(before, after, ["c"] * n, range(n), resamples=resamples, seed=seed, level=level)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    for confidence, ends in ((level, (found.ci_low, found.ci_high)), (0.98, (found.bound_low, found.bound_high))):
        reach = distances[math.floor((1 - confidence) * (resamples + 1) + 1e-6) - 1] * error  # so many lie at it or beyond
        if logarithmic:
            expected = (ratio * math.exp(-reach / ratio) - 1, ratio * math.exp(reach / ratio) - 1)
        else:
            expected = (max(ratio - reach, 0.0) - 1, ratio + reach - 1)
        assert ends == pytest.approx(expected, rel=1e-9)
    own = abs(math.log(ratio)) * ratio / error if logarithmic else abs(ratio - 1) / error
    assert found.p_value == (1 + sum(distance >= own for distance in distances)) / (1 + resamples)


@pytest.mark.parametrize("by", [1.0, -1.0, 2.0])
def test_a_change_by_a_whole_number_is_a_change(by: float) -> None:
    found = paired_change(np.full(8, 4.0), np.full(8, 4.0 + by), ["c"] * 8, range(8))
    assert (found.difference, found.change) == (by, by / 4)


def test_a_mean_that_does_not_move_has_a_p_value_of_1() -> None:
    """Also the resamples in which nothing moves are as far from no change as the data."""
    after = np.array([0.5, 1.5] * 8)
    found = paired_change(np.ones(16), after, ["c"] * 16, range(16))
    assert (found.change, found.p_value) == (0.0, 1.0)
    assert found.ci_low is not None
    assert found.ci_low < 0


def test_a_cluster_of_nearly_everything_counts_as_nine_tenths() -> None:
    """Its residual is multiplied by ten at most; without the limit, by a hundred."""
    before = np.r_[99.0, np.full(10, 0.1)]
    after = before * np.r_[0.5, np.linspace(0.6, 1.0, 10)]
    ratio, share = after.sum() / before.sum(), np.minimum(before / before.sum(), 0.9)
    moves = (after - ratio * before) / before.sum() / (1 - share)
    found = paired_change(before, after, ["c"] * 11, range(11))
    assert found.standard_error == pytest.approx(math.sqrt(10 / 11 * (moves**2).sum()), rel=1e-9)


def test_as_many_resamples_as_the_level_needs() -> None:
    columns = sample(10)
    assert paired_change(*columns, level=0.75, resamples=3).ci_low is not None
    assert paired_change(*columns, level=0.5, resamples=1).ci_low is not None
    with pytest.raises(ValueError, match=r"level=0\.75, resamples=2"):
        paired_change(*columns, level=0.75, resamples=2)
    assert paired_change(*columns, resamples=49).bound_high is not None
    assert paired_change(*columns, resamples=48).bound_high is None


def test_what_is_not_said() -> None:
    columns = sample()
    assert paired_change(*columns) == paired_change(*columns, ideal=0.0, resamples=2000, seed=0, level=0.95)


def test_results_are_made_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        PairedChange(*vars(paired_change(*sample())).values())


def test_copies_that_are_drawn_together_are_no_further_evidence() -> None:
    """Each template once, and four times under other names, in its own category or also in others."""
    before, after, categories, clusters = sample()
    once = paired_change(before, after, categories, clusters)
    copies = 4
    names = [f"{cluster}-{copy}" for cluster in clusters for copy in range(copies)]
    b, a, labels = np.repeat(before, copies), np.repeat(after, copies), list(np.repeat(categories, copies))
    together = [name.partition("-")[0] for name in names]
    assert paired_change(b, a, labels, names).clusters == copies * once.clusters  # what not saying so would do
    again = paired_change(b, a, labels, names, together=together)
    assert (again.clusters, again.n) == (once.clusters, copies * once.n)
    assert again.change == pytest.approx(once.change)
    assert again.standard_error == pytest.approx(once.standard_error)
    assert bounds(again) == pytest.approx(bounds(once))
    everywhere = [f"{label}{name[-1]}" for label, name in zip(labels, names, strict=True)]  # four times as many categories
    spread = paired_change(b, a, everywhere, names, together=together)
    assert bounds(spread) == pytest.approx(bounds(once))


def test_one_label_a_cluster_or_none_changes_nothing() -> None:
    values = sample()
    plain = paired_change(*values)
    assert paired_change(*values, together=[None] * 36) == plain
    some = [f"C{i % 3}/T{i}" if i < 5 else None for i in range(12) for _ in range(3)]
    assert paired_change(*values, together=some) == plain


def test_too_few_sentences_give_no_interval() -> None:
    values = sample()
    result = paired_change(*values, together=[f"sentence {i % 7}" for i in range(12) for _ in range(3)])
    assert (result.clusters, result.ci_low) == (7, None)
    assert result.not_estimable == "7 clusters are too few for an interval; 8 are needed"
