"""Did demographic contrasts change by more than control contrasts? The ratio of two ratios of macro means, with its interval.

With A and B the macro means after and before (weights w_c = 1 / (K n_k): `clusters.py`), d for demographic contrasts and c for
controls:

    delta = log(A_d / B_d) - log(A_c / B_c);   ratio of ratios = exp(delta)

1 says that the model reacts less to demographic words by just as much as to any other edit; 0.7 that demographic contrasts fell
by 30 % beyond what controls fell. Beside it stands the geometric version, the difference of weighted means of log ratios, in
which every cluster counts alike however large it is: a sensitivity analysis, not what the verdict rests on.

Method: symmetric bootstrap-t (Efron and Tibshirani 1993, section 12.5; Hall 1988) on delta, over jackknife standard errors.

- *One urn of templates where contrasts share them* (controls put into demographic templates): a template is drawn with all that
  stands in it, on both sides and in several control sets. What both sides share cancels. Templates without a partner stay in.
- *Two urns otherwise*: each side draws its own clusters, and the two variances add.
- *The jackknife is exact*: without unit u, log(A / B) moves by log(1 - a_u / A) - log(1 - b_u / B), where a_u / A is the share of
  A that the unit holds. A resample that one unit holds alone has no error, and counts as infinitely far away.

Coverage, and what else was tried (equal tails, BCa, Hall's transformation, Student's t, percentiles): all cover less; see
benchmarks/ratio_of_ratios_coverage.py and its record. Source: this project, docs/method/verdict.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairprune_framework.functional.clusters import Floats, cluster_means, effective_clusters, span_of_ratios
from fairprune_framework.functional.equal_size import SizedSide, ratio_at_equal_size
from fairprune_framework.functional.log_ratio import LogRatio, log_ratio
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS, RESAMPLES

_BLOCK = 1 << 19  # resamples times units that are held at once: 4 MiB an array


@dataclass(frozen=True, kw_only=True)
class PairedValues:
    """One side: a value per contrast before and after, and what the contrasts belong to. Compared as text."""

    before: ArrayLike
    """`(C,)`, positive in the mean, any unit."""
    after: ArrayLike
    """`(C,)`, the same contrasts in the same order."""
    categories: Sequence[object]
    """`(C,)` demographic categories, or control sets."""
    clusters: Sequence[object]
    """`(C,)` labels such as template ids; the same label in two categories makes two clusters."""
    templates: Sequence[object | None] | None = None
    """`(C,)` which text a contrast stands in, one for all contrasts of a cluster: equal labels, on either side, are drawn
    together. None: the contrast's text is its cluster's alone."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """Demographic contrasts or controls alone."""

    before: float
    """Macro mean."""
    after: float
    change: LogRatio
    """after / before, from the draws of the ratio of ratios."""
    contrasts: int
    categories: int
    clusters: int
    units: int
    """What is drawn: templates, where these are shared, else clusters."""
    effective: float
    """Kish's effective number of units, by the share of `before` that each one carries."""
    effective_categories: float
    """The same for categories, or control sets: 3 sets of which one holds 86 % of `before` count 1.3."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"change": self.change.to_json()}


@dataclass(frozen=True, kw_only=True)
class DifferenceInDifferences:
    """The result of `difference_in_differences`."""

    ratio_of_ratios: LogRatio
    geometric: LogRatio
    """The same with every cluster's log ratio weighted alike: sensitivity."""
    at_equal_size: LogRatio
    """The geometric ratio between demographic contrasts and controls that were equally large before: sensitivity."""
    demographic: Side
    controls: Side
    crossed: bool
    """One urn of templates; False: two urns."""
    shared: int
    """Templates that hold contrasts of both sides."""

    def to_json(self) -> dict[str, Any]:
        """JSON form, nested; every number finite, or null."""
        return {
            "ratio_of_ratios": self.ratio_of_ratios.to_json(),
            "geometric": self.geometric.to_json(),
            "at_equal_size": self.at_equal_size.to_json(),
            "demographic": self.demographic.to_json(),
            "controls": self.controls.to_json(),
            "crossed": self.crossed,
            "shared": self.shared,
        }


def difference_in_differences(
    demographic: PairedValues,
    controls: PairedValues,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> DifferenceInDifferences:
    """Estimate `(A_d / B_d) / (A_c / B_c)`, its interval, its one-sided bounds and its p-value. Source: see the module.

    Args:
        demographic: the contrasts that should have moved.
        controls: the contrasts that should not have moved by as much.
        resamples: Bootstrap resamples; 0 gives estimates alone. Identical inputs, in any order of rows, and seed give identical
            results.
        seed: Of numpy's PCG64.
        level: Of the intervals; the bounds have `BOUND_LEVEL`.

    Returns:
        No interval, and the reason in `not_estimable`: with fewer than `MIN_CLUSTERS` units on a side; where a mean, or its
        resamples, have no logarithm; where the interval holds 1 and reaches further to either side than the clusters' log ratios span
        on both sides together (`span_of_ratios`).

    Raises:
        ValueError: lengths differ within a side, a side is empty, a value is NaN or infinite, contrasts of one cluster stand in
            different templates, or `resamples` is too small.

    >>> rng = np.random.default_rng(0)
    >>> sides = []
    >>> for factor in (0.5, 0.9):
    ...     before = np.exp(rng.standard_normal(40))
    ...     after = factor * before * np.exp(0.2 * rng.standard_normal(40))
    ...     sides.append(PairedValues(before=before, after=after, categories=["k"] * 40, clusters=range(40)))
    >>> result = difference_in_differences(*sides).ratio_of_ratios
    >>> print(f"{result.ratio:.2f} [{result.ci_low:.2f}, {result.ci_high:.2f}], below {result.bound_high:.2f}")
    0.62 [0.54, 0.71], below 0.73
    """
    if resamples and (level <= 0 or (1 - level) * (resamples + 1) < 1):
        raise ValueError(
            f"difference_in_differences needs 0 < level < 1 and 1 / (1 - level) resamples. Got {level=}, {resamples=}."
        )
    sides = (_prepared("demographic", demographic), _prepared("controls", controls))
    shared = len(set(sides[0].unit_names) & set(sides[1].unit_names))
    spans = [span_of_ratios(side.before_N, side.after_N) for side in sides]
    moved = _draws(sides, crossed=shared > 0, resamples=resamples, seed=seed)

    def estimate(statistic: str, which: tuple[int, ...]) -> LogRatio:
        log_R, error_R = moved[statistic, which]
        few = next((few for index in which if (few := sides[index].too_few())), None)
        value = log_ratio(
            float(log_R[0]),
            float(error_R[0]),
            log_R[1:] if few is None else log_R[:0],
            error_R[1:],
            span=sum(spans[index] for index in which),
            level=level,
        )
        return value if few is None or value.standard_error is None else replace(value, not_estimable=few)

    return DifferenceInDifferences(
        ratio_of_ratios=estimate("means", (0, 1)),
        geometric=estimate("geometric", (0, 1)),
        at_equal_size=ratio_at_equal_size(*_sized(sides), level=level),
        demographic=sides[0].summary(estimate("means", (0,))),
        controls=sides[1].summary(estimate("means", (1,))),
        crossed=shared > 0,
        shared=shared,
    )


@dataclass(frozen=True)
class _Prepared:
    """A side as clusters and units."""

    before_N: Floats
    after_N: Floats
    weight_N: Floats
    category_N: NDArray[np.intp]
    unit_N: NDArray[np.intp]
    """Which unit a cluster belongs to."""
    unit_names: tuple[tuple[str, ...], ...]
    """Sorted; what both sides call alike is drawn together."""
    contrasts: int
    name: str

    def per_unit(self, values_N: Floats) -> Floats:
        """Sum over the clusters of each unit, `(U,)`."""
        return np.bincount(self.unit_N, values_N, minlength=len(self.unit_names)).astype(np.float64)

    def too_few(self) -> str | None:
        units = len(self.unit_names)
        if units >= MIN_CLUSTERS:
            return None
        return f"{units} {self.name} clusters are too few for an interval; {MIN_CLUSTERS} are needed"

    def summary(self, change: LogRatio) -> Side:
        held_N = self.weight_N * self.before_N
        return Side(
            before=float(held_N.sum()),
            after=float((self.weight_N * self.after_N).sum()),  # in the order of `before`: equal models differ by 0
            change=change,
            contrasts=self.contrasts,
            categories=int(self.category_N.max()) + 1,
            clusters=len(held_N),
            units=len(self.unit_names),
            effective=effective_clusters(self.per_unit(held_N)),
            effective_categories=effective_clusters(np.bincount(self.category_N, held_N).astype(np.float64)),
        )


def _prepared(name: str, values: PairedValues) -> _Prepared:
    owner = f"difference_in_differences ({name})"
    means = cluster_means(owner, values.before, values.after, values.categories, values.clusters)
    templates = values.templates if values.templates is not None else [None] * len(means.cluster_C)
    if len(templates) != len(means.cluster_C):
        raise ValueError(f"The 'templates' of {owner} must be one per contrast: {len(means.cluster_C)}. Got {len(templates)}.")
    unit_of: dict[int, tuple[str, ...]] = {}
    for row, (index, template) in enumerate(zip(means.cluster_C.tolist(), templates, strict=True)):
        own = (name, str(values.categories[row]), str(values.clusters[row]))
        unit = own if template is None else (str(template),)
        if unit_of.setdefault(index, unit) != unit:
            raise ValueError(
                f"The 'templates' of {owner} must be one for all contrasts of a cluster. Cluster {own[2]!r} of category "
                f"{own[1]!r} has {unit_of[index][-1]!r} and {unit[-1]!r}. Give each template a cluster of its own."
            )
    names = tuple(sorted(set(unit_of.values())))
    number = {unit: index for index, unit in enumerate(names)}
    return _Prepared(
        means.before_N,
        means.after_N,
        means.weight_N,
        means.category_N,
        np.array([number[unit_of[index]] for index in range(len(unit_of))]),
        names,
        len(means.cluster_C),
        name,
    )


def _sized(sides: tuple[_Prepared, _Prepared]) -> tuple[SizedSide, SizedSide]:
    number = {name: index for index, name in enumerate(sorted({name for side in sides for name in side.unit_names}))}

    def sized(side: _Prepared) -> SizedSide:
        unit_N = np.array([number[name] for name in side.unit_names])[side.unit_N]
        return SizedSide(before_N=side.before_N, after_N=side.after_N, weight_N=side.weight_N, unit_N=unit_N)

    return sized(sides[0]), sized(sides[1])


Moved = tuple[Floats, Floats]
"""A log ratio `(R,)`, not finite where a mean is 0 or negative, and by how much it moves without one unit that was drawn, `(R, U)`."""


def _log_ratio_of_means(side: _Prepared) -> Callable[[Floats], Moved]:
    """log(A / B), of counts `(R, U)`."""
    b_U, a_U = side.per_unit(side.weight_N * side.before_N), side.per_unit(side.weight_N * side.after_N)

    def of(counts_RU: Floats) -> Moved:
        B_R, A_R = counts_RU @ b_U, counts_RU @ a_U
        moved_RU = np.log1p(-a_U / A_R[:, None]) - np.log1p(-b_U / B_R[:, None])
        return np.log(A_R) - np.log(B_R), moved_RU

    return of


def _mean_of_log_ratios(side: _Prepared) -> Callable[[Floats], Moved]:
    """The weighted mean of log(after / before) over clusters, of counts `(R, U)`."""
    log_N = np.log(side.after_N) - np.log(side.before_N)
    w_U, l_U = side.per_unit(side.weight_N), side.per_unit(side.weight_N * log_N)

    def of(counts_RU: Floats) -> Moved:
        W_R = counts_RU @ w_U
        mean_R = (counts_RU @ l_U) / W_R
        return mean_R, (w_U * mean_R[:, None] - l_U) / (W_R[:, None] - w_U)

    return of


def _draws(
    sides: tuple[_Prepared, _Prepared], *, crossed: bool, resamples: int, seed: int
) -> dict[tuple[str, tuple[int, ...]], Moved]:
    """Both statistics of each side (0), (1) and of their difference (0, 1): values and errors `(1 + R,)`, the data first."""
    union = sorted({name for side in sides for name in side.unit_names})
    column_of = {name: column for column, name in enumerate(union)}
    columns = [np.array([column_of[name] for name in side.unit_names]) for side in sides]
    parts_of: dict[tuple[str, tuple[int, ...]], list[Moved]] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        statistics = {
            "means": [_log_ratio_of_means(side) for side in sides],
            "geometric": [_mean_of_log_ratios(side) for side in sides],
        }
        for counts_RU, per_side in _counts(columns, len(union), crossed, resamples, seed):
            for name, (first, second) in statistics.items():
                (d_R, d_RU), (c_R, c_RU) = first(per_side[0]), second(per_side[1])
                sizes = [len(union) if crossed else len(side.unit_names) for side in sides]
                d_variance, c_variance = _variance(per_side[0], d_RU, sizes[0]), _variance(per_side[1], c_RU, sizes[1])
                variance = d_variance + c_variance
                if crossed:
                    both_RU = np.zeros_like(counts_RU)
                    both_RU[:, columns[0]] = d_RU
                    both_RU[:, columns[1]] -= c_RU
                    variance = _variance(counts_RU, both_RU, len(union))
                parts_of.setdefault((name, (0,)), []).append((d_R, np.sqrt(d_variance)))
                parts_of.setdefault((name, (1,)), []).append((c_R, np.sqrt(c_variance)))
                parts_of.setdefault((name, (0, 1)), []).append((d_R - c_R, np.sqrt(variance)))
    return {
        key: (np.concatenate([value for value, _ in parts]), np.concatenate([error for _, error in parts]))
        for key, parts in parts_of.items()
    }


def _counts(
    columns: Sequence[NDArray[np.intp]], units: int, crossed: bool, resamples: int, seed: int
) -> Iterator[tuple[Floats, list[Floats]]]:
    """Yield how often every unit was drawn, `(block, U)`, and the same for the units of each side; the data first."""
    ones = np.ones((1, units))
    yield ones, [ones[:, column] for column in columns]
    urns = [np.arange(units)] if crossed else columns
    generators = [np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(len(urns))]
    for start in range(0, resamples, step := max(1, _BLOCK // units)):
        R = min(step, resamples - start)
        counts_RU = np.empty((R, units))
        for generator, urn in zip(generators, urns, strict=True):
            drawn_RU = generator.integers(0, len(urn), (R, len(urn))) + np.arange(R)[:, None] * len(urn)
            counts_RU[:, urn] = np.bincount(drawn_RU.ravel(), minlength=R * len(urn)).reshape(R, len(urn))
        yield counts_RU, [counts_RU[:, column] for column in columns]


def _variance(counts_RU: Floats, moved_RU: Floats, units: int) -> Floats:
    """The jackknife's: (n - 1) / n times the sum of squares around the mean, over n units drawn; a unit elsewhere moves by 0.

    What carries no count moves nothing, also where it would have no logarithm.
    """
    moved_RU = np.where(counts_RU > 0, moved_RU, 0.0)
    first_R = np.einsum("ru,ru->r", counts_RU, moved_RU) / units
    centred_RU = moved_RU - first_R[:, None]
    squares_R = np.einsum("ru,ru,ru->r", counts_RU, centred_RU, centred_RU)
    outside_R = units - counts_RU.sum(1)
    return np.asarray((units - 1) / units * (squares_R + outside_R * first_R**2))
