"""Rows of lm-eval tasks: the metric as lm-eval aggregates it, before and after on the same items, with intervals and tests.

Every aggregation that is a smooth function of sums over items gets an interval (`resampling.py`), over clusters where items share
a template (BBQ's questions); accuracies also McNemar's exact test. Metrics of other aggregations are given as lm-eval computes
them, without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.rows import ResultRow, RowKey, too_few, with_holm
from fairprune_framework.evaluation.tasks.aggregations import AGGREGATIONS, SPECIAL, Aggregation, ambiguous, bias, difference
from fairprune_framework.evaluation.tasks.derived import with_derived
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.functional.bootstrap import change_of, mean
from fairprune_framework.functional.hypothesis_tests import clustered_wilson, cohens_h, flips


def task_rows(before: TaskResult, after: TaskResult | None, seed: int) -> list[ResultRow]:
    """All rows of a task, each metric over all items and by category.

    Raises:
        FairpruneError: the two were measured on different items.
    """
    if after is not None and after.hash != before.hash:
        raise FairpruneError(f"the task {before.task!r} ran on different items before and after")
    before, after = with_derived(before), None if after is None else with_derived(after)
    categories = sorted({item["category"] for item in before.items if item["category"] is not None})
    rows: list[ResultRow] = []
    for metric, facts in before.metrics.items():
        of_category = any(metric.endswith(f"_{category}") for category in _BBQ)
        if of_category and before.task.startswith("bbq"):  # by category below, not by eleven metrics
            continue
        aggregation = SPECIAL.get(metric) or AGGREGATIONS.get(facts["aggregation"])
        if aggregation is not None and aggregation.ideal == 1.0 and facts["higher_is_better"] is False:
            aggregation = replace(aggregation, ideal=0.0)
        own = [
            _claimed(_row(before, after, metric, aggregation, category, seed), before, facts).noted(facts.get("note"))
            for category in _groups(categories, metric, before, facts if aggregation is not None else {"by_category": False})
        ]
        rows += [row for row in own if row.category is None] + with_holm([row for row in own if row.category is not None])
    return rows


def _groups(categories: Sequence[str], metric: str, before: TaskResult, facts: Mapping[str, Any]) -> list[str | None]:
    """What a metric has rows of: None for all items together, and categories; of our own tasks those alone that have it."""
    pooled: list[str | None] = [None] if facts.get("pooled", True) else []
    if not facts.get("by_category", True):
        return pooled
    if "pooled" not in facts:
        return [*pooled, *categories]
    having = {item["category"] for item in before.items if item.get(metric) is not None}
    return [*pooled, *(category for category in categories if category in having)]


def _claimed(row: ResultRow, before: TaskResult, facts: Mapping[str, Any]) -> ResultRow:
    """The row without change, interval and test where the accuracy that its metric rests on is not shown to beat chance before."""
    accuracy = facts.get("rests_on")
    if accuracy is None:
        return row
    aggregation = AGGREGATIONS[before.metrics[accuracy]["aggregation"]]
    found = [
        (bool(value[0]), item["cluster"])
        for item in before.items
        if row.category in (None, item["category"]) and (value := aggregation.summands(item[accuracy])) is not None
    ]
    right = [answer for answer, _ in found]
    low = clustered_wilson(right, [cluster for _, cluster in found])[0] if found else 0.0
    if low > facts["chance"]:
        return row
    known = f"{sum(right) / len(right):.1%}" if right else "not measured"
    bare = replace(
        row,
        change=None,
        ci_low=None,
        ci_high=None,
        difference_low=None,
        difference_high=None,
        p_value=None,
        detectable=None,
        effect_size=None,
        standard_error=None,
    )
    return bare.noted(f"no claim: {accuracy} of the model before is {known}, not shown to beat chance ({facts['chance']:.1%})")


_BBQ = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Race_x_gender",
    "Race_x_SES",
    "Religion",
    "SES",
    "Sexual_orientation",
)


def _row(
    before: TaskResult, after: TaskResult | None, metric: str, aggregation: Aggregation | None, category: str | None, seed: int
) -> ResultRow:
    name = f"{before.task}/{metric}"
    if aggregation is None:
        return _bare(before, after, metric, category)
    key = RowKey(metric=name, unit=aggregation.unit, ideal=aggregation.ideal, category=category)
    first, second, clusters, gold = [], [], [], []
    others = after.items if after is not None else before.items
    for item, other in zip(before.items, others, strict=True):
        one, two = aggregation.summands(item[metric]), aggregation.summands(other[metric])
        if category in (None, item["category"]) and one is not None and two is not None:
            first.append(one)
            second.append(two)
            clusters.append(item["cluster"])
            gold.append(item.get("gold"))
    if not first:
        return _bare(before, None, metric, category, note="no item of this kind")
    change = change_of(first, second, clusters, aggregation.statistic, ideal=aggregation.ideal, seed=seed)
    few = too_few(change.clusters, "independent items") if change.few else None
    note = ". ".join(text for text in (few, aggregation.note) if text) or None
    yes_or_no = aggregation.statistic is mean and all(value in (0, 1) and n == 1 for value, n in (*first, *second))
    low, high = clustered_wilson([v > 0 for v, _ in first], clusters) if yes_or_no and not change.few else (None, None)
    beaten = yes_or_no and aggregation.ideal == 1.0 and _trivial_note(change.before, low, gold)
    if beaten:
        note = ". ".join(text for text in (note, beaten) if text)
    if after is None:
        row = ResultRow.alone(key, change.before, n=change.n, clusters=change.clusters, note=note)
        return replace(row, before_low=low, before_high=high)
    row = replace(ResultRow.of_change(key, change), before_low=low, before_high=high, note=note).within(aggregation.span)
    capability = (aggregation.ideal, aggregation.unit) == (1.0, "share of items") or aggregation.unit == "perplexity"
    if capability and change.retention is not None and not beaten:
        kept = change.retention
        row = replace(row, retention=kept.value, retention_low=kept.low, retention_high=kept.high)
    answers = _answers(aggregation, first), _answers(aggregation, second)
    if answers[0] is None or answers[1] is None:
        return row
    counted = flips(answers[0], answers[1])
    row = replace(row, only_before=counted.only_before, only_after=counted.only_after)
    if not yes_or_no:
        return row
    low, high = (None, None) if change.few else clustered_wilson(answers[1], clusters)
    return replace(
        row,
        p_value=counted.p_value,
        detectable=counted.detectable,
        effect_size=cohens_h(change.before, change.after),
        after_low=low,
        after_high=high,
    )


def _trivial_note(accuracy: float, low: float | None, gold: Sequence[int | None]) -> str | None:
    """Says that the model before is not shown to beat one constant answer; None: it is, or the task has no numbered answers.

    What remains of an accuracy that a constant answer reaches says nothing about what the model can do.
    """
    if not gold or None in gold:
        return None
    share = max(gold.count(answer) for answer in set(gold)) / len(gold)
    if low is not None and low > share:
        return None
    return f"no claim of retention: always giving one answer is right in {share:.1%}, the model before in {accuracy:.1%}"


def _answers(aggregation: Aggregation, summands: Sequence[tuple[float, ...]]) -> list[bool] | None:
    """The yes or no of each item, for the flips: right, stereotyping, or biased; None where an item has no such answer."""
    index = 1 if aggregation.statistic in (bias, ambiguous, difference) else 0
    if aggregation.statistic not in (mean, bias, ambiguous, difference) or not {values[index] for values in summands} <= {
        0,
        1,
    }:
        return None
    return [bool(values[index]) for values in summands]


def _bare(
    before: TaskResult, after: TaskResult | None, metric: str, category: str | None, note: str | None = None
) -> ResultRow:
    """Point values as lm-eval aggregates them."""
    facts = before.metrics[metric]
    start, end = facts["value"], None if after is None else after.metrics[metric]["value"]
    key = RowKey(
        metric=f"{before.task}/{metric}",
        unit=facts["aggregation"],
        ideal=1.0 if facts["higher_is_better"] else 0.0,
        category=category,
    )
    row = ResultRow.alone(
        key,
        math.nan if start is None else start,
        n=len(before.items),
        note=note or f"no interval is known for the aggregation {facts['aggregation']!r}",
    )
    return replace(row, after=end, difference=None if end is None or start is None else end - start)
