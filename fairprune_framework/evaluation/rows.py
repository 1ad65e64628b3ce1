"""One line of results: a metric before and after, with intervals and tests, however it was computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fairprune_framework.functional.bootstrap import StatisticChange
from fairprune_framework.functional.hypothesis_tests import holm
from fairprune_framework.functional.log_ratio import LogRatio
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS, PairedChange, minimum_detectable_change


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """What a row is about. None: all splits, categories or layers."""

    metric: str
    unit: str
    ideal: float = 0.0
    """The value of a fair model."""
    split: str | None = None
    control: bool = False
    category: str | None = None
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One line of `evaluation.json`. Null category or layer: all of them. `change` and its interval are relative to
    |before - ideal|, null where that is 0; in `after` and what follows, null where one model alone was evaluated."""

    metric: str
    split: str | None
    control: bool
    category: str | None
    layer: int | None
    before: float | None
    """None, as `after`: beyond all numbers, or not measured."""
    after: float | None = None
    difference: float | None = None
    change: float | None = None
    ideal: float
    unit: str
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    n: int
    clusters: int | None = None
    standard_error: float | None = None
    difference_low: float | None = None
    """95 % interval of `difference`."""
    difference_high: float | None = None
    before_low: float | None = None
    """95 % interval of `before`, and of `after` below: Wilson's for shares of items."""
    before_high: float | None = None
    after_low: float | None = None
    after_high: float | None = None
    p_adjusted: float | None = None
    """Holm over the categories of the same metric."""
    detectable: float | None = None
    """`difference` that data like these would have shown with 80 % power: to be read beside every "no difference"."""
    effect_size: float | None = None
    """Cohen's h of shares, d_z of means over items."""
    only_before: int | None = None
    """Items whose answer was yes before and is no after, and below the other way round: newly biased, newly wrong, newly right."""
    only_after: int | None = None
    retention: float | None = None
    """after / before, of a capability, and its 95 % interval."""
    retention_low: float | None = None
    retention_high: float | None = None
    note: str | None = None
    """What has to be known to read the row: the formula, or why there is no interval."""

    @classmethod
    def alone(
        cls, key: RowKey, before: float | None, *, n: int, clusters: int | None = None, note: str | None = None
    ) -> ResultRow:
        """A row of one model."""
        return cls(**asdict(key), before=before, n=n, clusters=clusters, note=note)

    @classmethod
    def of_change(cls, key: RowKey, change: PairedChange | StatisticChange, *, clusters_are: str = "templates") -> ResultRow:
        """A row of two models.

        Args:
            change: of a mean over contrasts (its p-value tests the change), or of a statistic of sums over items (its p-value
                tests the difference).
            clusters_are: what was drawn, for the note that they are too few.
        """
        row = cls.alone(key, change.before, n=change.n, clusters=change.clusters)
        row = row._of_means(change) if isinstance(change, PairedChange) else row._of_statistics(change)
        if change.clusters < MIN_CLUSTERS:
            return row.noted(too_few(change.clusters, clusters_are))
        return row.noted(change.not_estimable if isinstance(change, PairedChange) else None)

    def _of_means(self, change: PairedChange) -> ResultRow:
        smallest = minimum_detectable_change(change)
        return replace(
            self,
            after=change.after,
            difference=change.difference,
            change=change.change,
            ci_low=change.ci_low,
            ci_high=change.ci_high,
            p_value=change.p_value,
            standard_error=change.standard_error,
            detectable=None if smallest is None else smallest * change.before,
        )

    def _of_statistics(self, statistic: StatisticChange) -> ResultRow:
        change = statistic.change
        return replace(
            self,
            after=statistic.after,
            difference=statistic.difference.value,
            difference_low=statistic.difference.low,
            difference_high=statistic.difference.high,
            change=None if change is None else change.value,
            ci_low=None if change is None else change.low,
            ci_high=None if change is None else change.high,
            standard_error=None if change is None else change.standard_error,
            p_value=statistic.difference.p_value,
            detectable=statistic.detectable,
        )

    def of_ratio(self, after: float, ratio: LogRatio) -> ResultRow:
        """This row of one model, with the second: `ratio` is after / before, with its interval.

        `detectable` is of a fall, and `standard_error` of the log ratio, as ratios have them.
        """
        assert self.before is not None
        low, high = ratio.ci_low, ratio.ci_high
        return replace(
            self,
            after=after,
            difference=after - self.before,
            change=None if ratio.ratio is None else ratio.ratio - 1,
            ci_low=None if low is None else low - 1,
            ci_high=None if high is None else high - 1,
            p_value=ratio.p_value,
            standard_error=ratio.standard_error,
            detectable=None if ratio.detectable is None else (1 - ratio.detectable) * self.before,
        ).noted(ratio.not_estimable)

    def within(self, span: float | None) -> ResultRow:
        """The row without its interval and test where the interval of the difference is wider than the score can differ.

        Args:
            span: highest minus lowest possible value of the score; None: unbounded.
        """
        low, high = self.difference_low, self.difference_high
        if span is None or low is None or high is None or (low >= -span and high <= span):
            return self
        bare = replace(
            self, difference_low=None, difference_high=None, ci_low=None, ci_high=None, p_value=None, detectable=None
        )
        return bare.noted("the difference is not estimable: its interval exceeds the range of the score")

    def noted(self, *notes: str | None) -> ResultRow:
        """The row with notes behind its own; without any, as it is."""
        texts = [text for text in (self.note, *notes) if text]
        return replace(self, note="; ".join(texts) or None)

    def to_json(self) -> dict[str, Any]:
        """JSON values. A perplexity may be too large for a number: JSON has no infinity, so that it becomes null."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ResultRow:
        """The row that `to_json` wrote."""
        return cls(**data)


def too_few(clusters: int, what: str) -> str:
    """Why there is no interval."""
    return f"{clusters} {what} are too few for an interval; {MIN_CLUSTERS} are needed"


def with_holm(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The same rows, one family, with Holm's p-values over all of them that have one."""
    tested = [row.p_value for row in rows if row.p_value is not None]
    values = iter(holm(tested))
    return [row if row.p_value is None else replace(row, p_adjusted=next(values)) for row in rows]
