"""The ratio of ratios against scipy's t tests, brute-force jackknives, invariances and simulated coverage."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairprune_framework.functional.difference_in_differences import (
    DifferenceInDifferences,
    PairedValues,
    Side,
    difference_in_differences,
)
from fairprune_framework.functional.log_ratio import LogRatio
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS, TOO_WIDE


def side(n: int, *, seed: int, factor: float = 0.6, categories: int = 1, templates: bool = False, effect: float = 0.4):
    """Lognormal clusters of two contrasts each."""
    rng = np.random.default_rng(seed)
    before = np.exp(0.8 * rng.standard_normal((n, 1)) + 0.2 * rng.standard_normal((n, 2)))
    after = factor * before * np.exp(effect * rng.standard_normal((n, 1)))
    rows = [i for i in range(n) for _ in range(2)]
    return PairedValues(
        before=before.ravel(),
        after=after.ravel(),
        categories=[f"K{i % categories}" for i in rows],
        clusters=[f"C{i}" for i in rows],
        templates=[f"T{i}" for i in rows] if templates else None,
    )


def changed(values: PairedValues, **parts: object) -> PairedValues:
    return PairedValues(**({name: getattr(values, name) for name in values.__dataclass_fields__} | parts))


def means(values: PairedValues) -> tuple[np.ndarray, np.ndarray]:
    """Cluster means of `side`."""
    return tuple(np.asarray(column).reshape(-1, 2).mean(1) for column in (values.before, values.after))


def log_of(found: LogRatio) -> float:
    assert found.ratio is not None
    return math.log(found.ratio)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_geometric_version_is_the_t_test_of_log_ratios(crossed: bool) -> None:
    d, c = side(17, seed=1, templates=crossed), side(17 if crossed else 23, seed=2, templates=crossed)
    logs = [np.log(after / before) for before, after in (means(d), means(c))]
    found = difference_in_differences(d, c, resamples=0).geometric
    theirs = stats.ttest_rel(*logs) if crossed else stats.ttest_ind(*logs, equal_var=False)
    assert log_of(found) == pytest.approx(logs[0].mean() - logs[1].mean())
    assert log_of(found) / found.standard_error == pytest.approx(theirs.statistic)


def test_the_error_is_the_brute_force_jackknife_of_two_urns() -> None:
    d, c = side(11, seed=3, categories=3), side(9, seed=4, categories=2)
    variance = estimate = 0.0
    for sign, values, categories in ((1, d, 3), (-1, c, 2)):
        before, after = means(values)
        kinds = np.arange(len(before)) % categories
        weight = 1 / (categories * np.bincount(kinds)[kinds])
        left = [
            math.log((weight * after)[np.arange(len(before)) != i].sum() / (weight * before)[np.arange(len(before)) != i].sum())
            for i in range(len(before))
        ]
        variance += (len(left) - 1) / len(left) * sum((one - np.mean(left)) ** 2 for one in left)
        estimate += sign * math.log((weight * after).sum() / (weight * before).sum())
    found = difference_in_differences(d, c)
    assert not found.crossed
    assert log_of(found.ratio_of_ratios) == pytest.approx(estimate)
    assert found.ratio_of_ratios.standard_error == pytest.approx(math.sqrt(variance))


def test_one_urn_leaves_a_template_out_of_both_sides_at_once() -> None:
    # Controls C0 to C5 stand in the demographic templates T4 to T9, two sets in each; T0 to T3 have no partner.
    rng = np.random.default_rng(5)
    before, after = rng.uniform(1, 2, (2, 10))
    c_before, c_after = rng.uniform(1, 2, (2, 12))
    homes = [4, 5, 6, 7, 8, 9] * 2
    d = PairedValues(
        before=before, after=after, categories=["k"] * 10, clusters=range(10), templates=[f"T{i}" for i in range(10)]
    )
    c = PairedValues(
        before=c_before,
        after=c_after,
        categories=["s"] * 6 + ["t"] * 6,
        clusters=range(12),
        templates=[f"T{i}" for i in homes],
    )

    def log(without: int | None) -> float:
        keep = np.arange(10) != without
        kept = np.array(homes) != without
        return math.log(after[keep].sum() / before[keep].sum()) - math.log(c_after[kept].sum() / c_before[kept].sum())

    left = np.array([log(i) for i in range(10)])
    found = difference_in_differences(d, c)
    assert (found.crossed, found.shared, found.controls.clusters, found.controls.units) == (True, 6, 12, 6)
    assert log_of(found.ratio_of_ratios) == pytest.approx(log(None))
    expected = math.sqrt(0.9 * ((left - left.mean()) ** 2).sum())
    assert found.ratio_of_ratios.standard_error == pytest.approx(expected)


def test_many_clusters_agree_with_scipys_bootstrap() -> None:
    d, c = side(300, seed=6, templates=True), side(300, seed=7, templates=True)
    columns = (*means(d), *means(c))

    def log(b, a, cb, ca, axis):
        return np.log(a.mean(axis) / b.mean(axis)) - np.log(ca.mean(axis) / cb.mean(axis))

    theirs = stats.bootstrap(columns, log, paired=True, vectorized=True, n_resamples=4000, rng=np.random.default_rng(8))
    found = difference_in_differences(d, c).ratio_of_ratios
    assert found.standard_error == pytest.approx(theirs.standard_error, rel=0.1)
    low, high = theirs.confidence_interval
    assert [math.log(found.ci_low), math.log(found.ci_high)] == pytest.approx([low, high], abs=0.4 * theirs.standard_error)


def test_independent_sides_give_one_answer_crossed_or_not() -> None:
    plain = difference_in_differences(side(400, seed=9), side(400, seed=10)).ratio_of_ratios
    crossed = difference_in_differences(side(400, seed=9, templates=True), side(400, seed=10, templates=True)).ratio_of_ratios
    assert crossed.ratio == pytest.approx(plain.ratio, rel=1e-12)
    assert crossed.standard_error == pytest.approx(plain.standard_error, rel=0.1)
    assert [crossed.ci_low, crossed.ci_high] == pytest.approx([plain.ci_low, plain.ci_high], abs=0.02)


def test_templates_without_any_partner_are_two_urns_to_the_last_bit() -> None:
    c = side(12, seed=12)
    alone = changed(c, templates=[f"other {name}" for name in c.clusters])
    d = side(15, seed=11)
    assert not difference_in_differences(d, alone).crossed
    assert difference_in_differences(d, alone) == difference_in_differences(d, c)


def test_what_both_sides_share_cancels() -> None:
    # Template effects that hit both sides alike: crossed intervals lose the common part.
    d = side(40, seed=13, templates=True)
    noise = np.repeat(np.exp(0.05 * np.random.default_rng(14).standard_normal(40)), 2)
    c = changed(d, after=np.asarray(d.after) * noise, categories=["control"] * 80)
    crossed = difference_in_differences(d, c).ratio_of_ratios
    apart = difference_in_differences(changed(d, templates=None), changed(c, templates=None)).ratio_of_ratios
    assert crossed.standard_error < 0.25 * apart.standard_error


@given(
    seed=st.integers(0, 2**32 - 1),
    crossed=st.booleans(),
    scales=st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)),
    n=st.tuples(st.integers(8, 30), st.integers(8, 30)),
)
@settings(max_examples=40, deadline=None)
def test_units_of_the_values_do_not_matter(seed: int, crossed: bool, scales: tuple[float, float], n: tuple[int, int]) -> None:
    sides = [side(size, seed=seed + i, templates=crossed, categories=2) for i, size in enumerate(n)]
    scaled = [
        changed(one, before=scale * np.asarray(one.before), after=scale * np.asarray(one.after))
        for one, scale in zip(sides, scales, strict=True)
    ]
    first, second = (difference_in_differences(*pair, resamples=199).ratio_of_ratios for pair in (sides, scaled))
    assert first.not_estimable == second.not_estimable
    names = ("ratio", "standard_error", "ci_low", "ci_high", "bound_low", "bound_high")
    for name in names[: 2 if first.not_estimable else 6]:
        assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-6), name


@given(seed=st.integers(0, 2**32 - 1), crossed=st.booleans(), categories=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_exchanged_labels_turn_the_ratio_over(seed: int, crossed: bool, categories: int) -> None:
    d, c = (side(14, seed=seed + i, templates=crossed, categories=categories) for i in (0, 1))
    found = difference_in_differences(d, c, resamples=199)
    turned = difference_in_differences(*(changed(one, before=one.after, after=one.before) for one in (d, c)), resamples=199)
    exchanged = difference_in_differences(c, d, resamples=199)
    for other in (turned, exchanged):
        for name in ("ratio_of_ratios", "geometric"):
            one, two = getattr(found, name), getattr(other, name)
            assert log_of(two) == pytest.approx(-log_of(one))
            assert two.standard_error == pytest.approx(one.standard_error)
    same_draws = [turned, exchanged] if crossed else [turned]
    for other in same_draws:
        one, two = found.ratio_of_ratios, other.ratio_of_ratios
        assert one.not_estimable == two.not_estimable
        if one.not_estimable is None:
            assert [1 / two.ci_high, 1 / two.ci_low] == pytest.approx([one.ci_low, one.ci_high])
            assert [1 / two.bound_high, 1 / two.bound_low] == pytest.approx([one.bound_low, one.bound_high])
            assert two.p_value == pytest.approx(one.p_value)


@given(
    seed=st.integers(0, 2**32 - 1), crossed=st.booleans(), factor=st.floats(0.01, 10), n=st.tuples(*[st.integers(8, 25)] * 2)
)
@settings(max_examples=40, deadline=None)
def test_uniform_shrinkage_of_everything_gives_exactly_one(seed: int, crossed: bool, factor: float, n: tuple[int, int]) -> None:
    sides = [side(size, seed=seed + i, templates=crossed) for i, size in enumerate(n)]
    found = difference_in_differences(
        *(changed(one, after=factor * np.asarray(one.before)) for one in sides), resamples=99
    ).ratio_of_ratios
    assert [found.ratio, found.ci_low, found.bound_high, found.p_value] == pytest.approx([1, 1, 1, 1])


@given(seed=st.integers(0, 2**32 - 1), crossed=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_order_of_rows_does_not_matter_to_the_last_bit(seed: int, crossed: bool) -> None:
    sides = [side(size, seed=seed + i, templates=crossed, categories=3) for i, size in enumerate((13, 10))]
    rng = np.random.default_rng(seed)
    mixed = []
    for one in sides:
        order = rng.permutation(len(one.categories))
        columns = {name: getattr(one, name) for name in one.__dataclass_fields__}
        mixed.append(PairedValues(**{k: v if v is None else [v[i] for i in order] for k, v in columns.items()}))
    assert difference_in_differences(*mixed, resamples=99) == difference_in_differences(*sides, resamples=99)


def test_interval_bounds_and_p_value_agree() -> None:
    for seed in range(30):
        d, c = side(12, seed=seed, factor=0.75, categories=2), side(12, seed=100 + seed, factor=1.0)
        found = difference_in_differences(d, c, resamples=999, seed=seed).ratio_of_ratios
        assert (found.p_value <= 0.05) == (not found.ci_low <= 1 <= found.ci_high)
        assert found.bound_low < found.ci_low < found.ratio < found.ci_high < found.bound_high


def test_effective_units_count_weight_and_not_rows() -> None:
    # Three control sets of five templates; one holds nearly everything: 5 templates and about 1 set count.
    n, sizes = 15, np.repeat([0.0412, 0.0052, 0.0013], 5)
    c = PairedValues(before=sizes, after=sizes, categories=np.repeat(["a", "b", "c"], 5), clusters=range(n))
    found = difference_in_differences(side(20, seed=1), c).controls
    assert (found.clusters, found.units, found.categories) == (15, 15, 3)
    assert found.effective == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum())
    assert found.effective == pytest.approx(6.6, abs=0.1)
    assert found.effective_categories == pytest.approx(found.effective / 5)


def test_sets_in_one_template_are_one_piece_of_evidence() -> None:
    once = side(10, seed=1, templates=True)
    thrice = PairedValues(
        before=np.tile(once.before, 3),
        after=np.tile(once.after, 3),
        categories=np.repeat(["a", "b", "c"], 20),
        clusters=list(once.clusters) * 3,
        templates=list(once.templates) * 3,
    )
    d = side(20, seed=2)
    first, second = (difference_in_differences(d, c) for c in (once, thrice))
    assert second.controls.clusters == 30
    assert second.controls.effective == pytest.approx(first.controls.effective)
    assert second.ratio_of_ratios.standard_error == pytest.approx(first.ratio_of_ratios.standard_error)


def test_too_few_clusters_give_an_estimate_and_no_interval() -> None:
    found = difference_in_differences(side(20, seed=1), side(MIN_CLUSTERS - 1, seed=2))
    for one in (found.ratio_of_ratios, found.geometric, found.controls.change):
        assert one.ratio is not None
        assert one.standard_error is not None
        assert [one.ci_low, one.ci_high, one.bound_low, one.bound_high, one.p_value] == [None] * 5
        assert one.not_estimable == "7 controls clusters are too few for an interval; 8 are needed"
    assert found.demographic.change.not_estimable is None


def test_an_interval_beyond_what_the_data_allow_is_not_estimable() -> None:
    # One cluster holds nearly all of the mean: the jackknife error is wider than the ratios of all clusters lie apart.
    before = np.r_[1000.0, np.ones(9)]
    after = before * np.r_[1.5, np.full(5, 0.9), np.full(4, 0.8)]
    d = PairedValues(before=before, after=after, categories=["k"] * 10, clusters=range(10))
    found = difference_in_differences(d, side(20, seed=3, factor=1.0, effect=0.01))
    assert found.ratio_of_ratios.not_estimable == TOO_WIDE
    assert found.ratio_of_ratios.ci_high is None
    assert found.ratio_of_ratios.bound_high is None
    assert found.ratio_of_ratios.ratio == pytest.approx(1.5, rel=0.02)


def test_means_without_a_logarithm_are_not_estimable() -> None:
    d, c = side(10, seed=1), side(10, seed=2)
    gone = difference_in_differences(changed(d, after=np.zeros(20)), c)
    assert gone.ratio_of_ratios.ratio is None
    assert "0 or negative" in gone.ratio_of_ratios.not_estimable
    some = np.asarray(d.after).copy()
    some[:2] = 0.0  # one cluster: the ratio of means exists, the mean of log ratios does not
    found = difference_in_differences(changed(d, after=some), c)
    assert found.ratio_of_ratios.ci_high is not None
    assert found.geometric.ratio is None
    mostly = np.zeros(20)
    mostly[:2] = 1.0  # a third of the resamples hold nothing
    assert difference_in_differences(changed(d, after=mostly), c).ratio_of_ratios.ci_low is None


def test_json_is_plain_and_finite() -> None:
    d, c = side(10, seed=1), side(10, seed=2)
    for found in (difference_in_differences(d, c), difference_in_differences(changed(d, after=np.zeros(20)), c, resamples=0)):
        assert isinstance(found, DifferenceInDifferences)
        text = json.dumps(found.to_json(), allow_nan=False)
        assert json.loads(text)["controls"]["units"] == 10
    assert found.to_json()["ratio_of_ratios"]["ratio"] is None


def test_seed_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    d, c = side(12, seed=1, templates=True), side(10, seed=2, templates=True)
    whole = difference_in_differences(d, c, resamples=199, seed=1).ratio_of_ratios
    assert whole != difference_in_differences(d, c, resamples=199, seed=2).ratio_of_ratios
    monkeypatch.setattr("fairprune_framework.functional.difference_in_differences._BLOCK", 12 * 7)
    again = difference_in_differences(d, c, resamples=199, seed=1).ratio_of_ratios
    assert [again.ci_low, again.ci_high] == pytest.approx([whole.ci_low, whole.ci_high], rel=1e-12)


@pytest.mark.parametrize(("n", "correlation"), [(20, 0.0), (40, 0.5)])
def test_coverage(n: int, correlation: float) -> None:
    """300 simulations: the binomial error of 95 % is 1.3 points, of the bound's 1 % 0.6. In full: the benchmark."""
    simulations, truth = 300, 0.8
    rng = np.random.default_rng(n)
    z = rng.standard_normal((4, simulations, n))
    z[2:] = correlation * z[:2] + math.sqrt(1 - correlation**2) * z[2:]
    labels, names = [f"K{i % 4}" for i in range(n)], [f"T{i}" for i in range(n)] if correlation else None
    inside = falsely = 0
    for i in range(simulations):
        sides = []
        for size, effect, factor in ((z[0, i], z[1, i], 0.6 * truth), (z[2, i], z[3, i], 0.6)):
            before = np.exp(0.9 * size)
            after = factor * before * np.exp(0.4 * effect)
            sides.append(PairedValues(before=before, after=after, categories=labels, clusters=range(n), templates=names))
        found = difference_in_differences(*sides, resamples=399, seed=i)
        assert found.crossed == (correlation > 0)
        inside += found.ratio_of_ratios.ci_low <= truth <= found.ratio_of_ratios.ci_high
        falsely += found.ratio_of_ratios.bound_high < truth
    assert inside / simulations == pytest.approx(0.95, abs=0.04)
    assert falsely / simulations < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": [1.0]}, r"\(controls\) must have one entry per contrast.*'before': 20, 'after': 1"),
        ({"before": [math.nan] * 20}, r"'before' of difference_in_differences \(controls\) must be finite"),
        ({"templates": ["T"]}, r"'templates' of .*one per contrast: 20. Got 1"),
        ({"templates": [f"T{i}" for i in range(20)]}, r"Cluster 'C0' of category 'K0' has 'T0' and 'T1'"),
    ],
)
def test_misuse(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        difference_in_differences(side(10, seed=1), changed(side(10, seed=2), **change))
    with pytest.raises(ValueError, match="resamples=10"):
        difference_in_differences(side(10, seed=1), side(10, seed=2), resamples=10)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -0.1])
def test_a_level_that_is_no_share(level: float) -> None:
    with pytest.raises(ValueError, match=r"needs 0 < level < 1"):
        difference_in_differences(side(10, seed=1), side(10, seed=2), level=level)


def test_as_many_resamples_as_the_level_needs() -> None:
    d, c = side(10, seed=1), side(10, seed=2)
    difference_in_differences(d, c, level=0.75, resamples=3)
    with pytest.raises(ValueError, match=r"level=0\.75, resamples=2"):
        difference_in_differences(d, c, level=0.75, resamples=2)
    unasked = difference_in_differences(d, c, resamples=0, level=0.0).ratio_of_ratios
    assert unasked.not_estimable == "no resamples were asked for"


def test_what_is_not_said() -> None:
    d, c = side(10, seed=1), side(10, seed=2)
    assert difference_in_differences(d, c) == difference_in_differences(d, c, resamples=2000, seed=0, level=0.95)


def test_each_side_by_itself() -> None:
    """Means, changes and numbers of each side, by hand; the demographic and the control change are not the same."""
    d, c = side(9, seed=1, categories=2), side(12, seed=2, factor=0.9, templates=True)
    found = difference_in_differences(d, c)
    for one, values, clusters, categories in ((found.demographic, d, 9, 2), (found.controls, c, 12, 1)):
        before, after = means(values)
        kinds = np.arange(clusters) % categories
        macro = [np.mean([column[kinds == kind].mean() for kind in range(categories)]) for column in (before, after)]
        assert [one.before, one.after] == pytest.approx(macro)
        assert one.change.ratio == pytest.approx(macro[1] / macro[0])
        weight = 1 / (categories * np.bincount(kinds)[kinds])
        kept = [np.arange(clusters) != i for i in range(clusters)]
        left = [math.log((weight * after)[keep].sum() / (weight * before)[keep].sum()) for keep in kept]
        variance = (clusters - 1) / clusters * sum((each - np.mean(left)) ** 2 for each in left)
        assert one.change.standard_error == pytest.approx(math.sqrt(variance))
        assert (one.contrasts, one.clusters, one.units, one.categories) == (2 * clusters, clusters, clusters, categories)
        assert one.change.ci_low is not None
        assert one.change.ci_high is not None
        assert one.change.ci_low < one.change.ratio < one.change.ci_high
    assert found.ratio_of_ratios.ratio == pytest.approx(found.demographic.change.ratio / found.controls.change.ratio)
    assert (found.crossed, found.shared) == (False, 0)


def replayed(counts: list[int], before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """log(A / B) of a resample and its jackknife variance: every draw is left out in turn."""
    rows = [i for i, count in enumerate(counts) for _ in range(count)]

    def log(chosen: list[int]) -> float:
        return math.log(sum(after[i] for i in chosen) / sum(before[i] for i in chosen))

    left = [log(rows[:at] + rows[at + 1 :]) for at in range(len(rows))]
    return log(rows), (len(rows) - 1) / len(rows) * sum((one - np.mean(left)) ** 2 for one in left)


def test_two_urns_in_plain_loops() -> None:
    """Each side draws its own clusters, from a generator of its own; distances from the estimate in errors of the resample."""
    resamples, seed, sizes = 59, 4, (8, 9)
    rng = np.random.default_rng(6)
    columns = [(before, before * rng.uniform(0.5, 1.2, n)) for n in sizes for before in [rng.uniform(1, 2, n)]]
    sides = [
        PairedValues(
            before=before, after=after, categories=["k"] * len(before), clusters=[f"{i:02}" for i in range(len(before))]
        )
        for before, after in columns
    ]
    draws = []
    for n, child in zip(sizes, np.random.SeedSequence(seed).spawn(2), strict=True):
        drawn = np.random.Generator(np.random.PCG64(child)).integers(0, n, (resamples, n))
        draws.append([np.bincount(row, minlength=n).tolist() for row in drawn])
    (d, d_variance), (c, c_variance) = (replayed([1] * n, *one) for n, one in zip(sizes, columns, strict=True))
    value, error, distances = d - c, math.sqrt(d_variance + c_variance), []
    for one, two in zip(*draws, strict=True):
        (d, d_variance), (c, c_variance) = replayed(one, *columns[0]), replayed(two, *columns[1])
        distances.append(abs(d - c - value) / math.sqrt(d_variance + c_variance))
    found = difference_in_differences(*sides, resamples=resamples, seed=seed).ratio_of_ratios
    assert found.standard_error == pytest.approx(error)
    reach, far = (sorted(distances, reverse=True)[rank - 1] * error for rank in (3, 1))  # 5 % and 2 % of 60
    assert [found.ci_low, found.ci_high] == pytest.approx([math.exp(value - reach), math.exp(value + reach)])
    assert [found.bound_low, found.bound_high] == pytest.approx([math.exp(value - far), math.exp(value + far)])
    assert found.p_value == (1 + sum(distance >= abs(value) / error for distance in distances)) / 60


def test_parts_are_made_by_name_and_do_not_change() -> None:
    found = difference_in_differences(side(10, seed=1), side(10, seed=2), resamples=0)
    for kind, made in ((DifferenceInDifferences, found), (Side, found.controls), (PairedValues, side(10, seed=1))):
        with pytest.raises(TypeError, match="positional"):
            kind(*vars(made).values())
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.shared = made.before = 1  # type: ignore[union-attr]
