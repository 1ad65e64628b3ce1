"""Rows of tasks: lm-eval's aggregations before and after, with statsmodels' and scipy's tests on the items."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks.data import TaskSettings
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.evaluation.tasks.rows import task_rows

RNG = np.random.default_rng(0)


def settings(task: str, data: Path) -> TaskSettings:
    return TaskSettings(task=task, data=data)


def test_rows_before_and_after(data: Path, subject: Subject) -> None:
    site = next(iter(subject.architecture.sites))
    (before,) = subject.task(settings("bbq", data))
    (after,) = subject.masked_by({site: list(range(20))}).task(settings("bbq", data))
    rows = task_rows(before, after, 0)
    names = {row.metric for row in rows}
    assert names == {
        f"bbq/{name}"
        for name in (
            *("acc", "accuracy_amb", "accuracy_disamb", "amb_bias_score", "disamb_bias_score"),
            *("amb_diff_bias", "disamb_diff_bias", "accuracy_answered"),
        )
    }
    score = next(row for row in rows if row.metric == "bbq/amb_bias_score" and row.category is None)
    assert score.after == pytest.approx(after.metrics["amb_bias_score"]["value"])
    assert (score.n, score.clusters) == (32, 16)
    assert score.note is not None
    assert "HELM" in score.note
    age = next(row for row in rows if row.metric == "bbq/amb_bias_score" and row.category == "Age")
    assert age.before == pytest.approx(before.metrics["amb_bias_score_Age"]["value"])
    accuracy = next(row for row in rows if row.metric == "bbq/acc" and row.category is None)
    assert accuracy.detectable is not None
    same = task_rows(before, before, 0)
    assert {row.difference for row in same} == {0.0}
    with pytest.raises(FairpruneError, match="different items"):
        task_rows(before, replace(after, hash="x"), 0)


def test_a_metric_of_another_aggregation_has_no_interval() -> None:
    result = TaskResult(
        task="made",
        version="1",
        items=({"id": 0, "category": None, "cluster": "0", "f1": [0, 1]},),
        metrics={"f1": {"value": 0.5, "aggregation": "f1", "higher_is_better": True}},
        hash="1",
    )
    (row,) = task_rows(result, result, 0)
    assert (row.before, row.difference, row.ci_low) == (0.5, 0.0, None)
    assert row.note is not None
    assert "f1" in row.note


def result(
    metric: str, aggregation: str, values: list[Any], better: bool | None = True, value: Any = None, **more: Any
) -> TaskResult:
    """A task of one metric, one cluster an item."""
    items = tuple(
        {"id": i, "category": more.get("categories", {}).get(i), "cluster": str(i), metric: each}
        for i, each in enumerate(values)
    )
    facts = {"value": value, "aggregation": aggregation, "higher_is_better": better}
    return TaskResult(task="made", version="1", items=items, metrics={metric: facts}, hash="1")


def test_an_accuracy_has_mcnemar_wilson_and_cohen() -> None:
    before, after = (RNG.random(90) < 0.6).astype(int), (RNG.random(90) < 0.5).astype(int)
    (row,) = task_rows(result("acc", "mean", before.tolist()), result("acc", "mean", after.tolist()), 0)
    table = [[int(((before == i) & (after == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    assert row.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (row.only_before, row.only_after) == (table[0][1], table[1][0])
    assert (row.before, row.after) == pytest.approx((before.mean(), after.mean()))
    for found, values in (((row.before_low, row.before_high), before), ((row.after_low, row.after_high), after)):
        assert found == pytest.approx(proportion_confint(values.sum(), 90, method="wilson"))
    assert row.effect_size == pytest.approx(proportion_effectsize(after.mean(), before.mean()))
    assert row.retention == pytest.approx(after.mean() / before.mean())
    assert row.change == pytest.approx((abs(after.mean() - 1) - abs(before.mean() - 1)) / abs(before.mean() - 1))
    assert (row.ideal, row.unit, row.metric) == (1.0, "share of items", "made/acc")


@pytest.mark.parametrize(
    ("metric", "aggregation", "better", "ideal"),
    [
        ("acc", "mean", True, 1.0),
        ("loss", "mean", False, 0.0),
        ("pct_stereotype", "mean", False, 0.5),
        ("likelihood_diff", "mean", False, 0.0),
    ],
)
def test_the_ideal_of_a_metric(metric: str, aggregation: str, better: bool, ideal: float) -> None:
    (row,) = task_rows(result(metric, aggregation, [0, 1] * 20, better), None, 0)
    assert (row.ideal, row.before, row.after) == (ideal, 0.5, None)


def test_sums_of_words_and_bytes() -> None:
    """Of (log p, words): as lm-eval's own functions aggregate them."""
    from lm_eval.api.metrics import bits_per_byte, perplexity, weighted_perplexity

    log_p, words = -RNG.gamma(9, 4, 30), RNG.integers(5, 60, 30).astype(float)
    pairs = list(zip(log_p.tolist(), words.tolist(), strict=True))
    for aggregation, values, expected in (
        ("weighted_perplexity", [list(pair) for pair in pairs], weighted_perplexity(pairs)),
        ("bits_per_byte", [list(pair) for pair in pairs], bits_per_byte(pairs)),
        ("perplexity", log_p.tolist(), perplexity(log_p.tolist())),
    ):
        (row,) = task_rows(result("x", aggregation, values, False), None, 0)
        assert row.before == pytest.approx(expected), aggregation
        assert row.ideal == 0.0


def test_an_item_that_one_side_lacks_is_in_neither() -> None:
    before, after = [1, None, 0, 1] * 10, [1, 1, None, 0] * 10
    (row,) = task_rows(result("acc", "mean", before), result("acc", "mean", after), 0)
    assert (row.n, row.before, row.after) == (20, 1.0, 0.5)


def test_few_items_have_no_interval_and_say_so() -> None:
    (row,) = task_rows(result("acc", "mean", [0, 1, 1]), result("acc", "mean", [1, 1, 1]), 0)
    assert row.ci_low is row.before_low is row.after_low is None
    assert row.note is not None
    assert "3 independent items are too few" in row.note
    assert row.difference == pytest.approx(1 / 3)


def test_categories_are_tested_together() -> None:
    """Holm over the categories of a metric: the smaller p of two is doubled."""
    before, after = (RNG.random(80) < 0.7).astype(int).tolist(), (RNG.random(80) < 0.4).astype(int).tolist()
    categories = {i: "ab"[i % 2] for i in range(80)}
    rows = task_rows(
        result("acc", "mean", before, categories=categories), result("acc", "mean", after, categories=categories), 0
    )
    assert [row.category for row in rows] == [None, "a", "b"]
    assert rows[0].p_adjusted is None
    p = [row.p_value for row in rows[1:] if row.p_value is not None]
    adjusted = [row.p_adjusted for row in rows[1:]]
    assert min(x for x in adjusted if x is not None) == pytest.approx(min(1.0, 2 * min(p)))


def test_a_kind_of_item_that_is_not_there() -> None:
    (row,) = task_rows(result("accuracy_amb", "agg_accuracy_amb", [[1, 1], [0, 1]], value=float("nan")), None, 0)
    assert row.note == "no item of this kind"
    assert row.before is not None
    assert math.isnan(row.before)


def test_an_interval_beyond_the_range_of_a_score_is_not_estimable() -> None:
    """One answer that is not "unknown" is left after: the score jumps between -1 and 1 with it."""
    disambiguated = 1
    before = [[0, i % 2, 1, disambiguated] for i in range(24)]
    after = [[0, int(i == 0), int(i < 2), disambiguated] for i in range(24)]
    name, aggregation = "disamb_bias_score", "agg_disamb_bias_scores"
    (row,) = task_rows(result(name, aggregation, before), result(name, aggregation, after), 0)
    assert (row.before, row.after, row.difference) == (0.0, 0.0, 0.0)
    assert row.difference_low is row.difference_high is row.ci_low is row.p_value is row.detectable is None
    assert row.note is not None
    assert "not estimable" in row.note

    (row,) = task_rows(result(name, aggregation, before), result(name, aggregation, before[::-1]), 0)
    assert row.difference_low is not None
    assert "not estimable" not in str(row.note)


def with_gold(right: list[int], gold: list[int]) -> TaskResult:
    made = result("acc", "mean", right)
    return replace(made, items=tuple({**item, "gold": answer} for item, answer in zip(made.items, gold, strict=True)))


@pytest.mark.parametrize(("right", "claimed"), [(43, False), (59, False), (66, False), (75, True)])
def test_what_a_constant_answer_reaches_carries_no_retention(right: int, claimed: bool) -> None:
    """59 of 100 answers are yes. 66 right are more, and not shown to be: the lower bound of 66 % is 56 %."""
    gold = [1] * 59 + [0] * 41
    made = with_gold([1] * right + [0] * (100 - right), gold)
    (row,) = task_rows(made, made, 0)
    assert (row.retention is not None) is claimed
    noted = f"always giving one answer is right in 59.0%, the model before in {right}.0%"
    assert (noted in (row.note or "")) is not claimed
    assert row.change == 0


def test_a_wrong_answer_is_not_better_where_lower_is() -> None:
    made = replace(with_gold([1] * 30 + [0] * 70, [0] * 100), metrics=result("acc", "mean", [], better=False).metrics)
    (row,) = task_rows(made, made, 0)
    assert row.ideal == 0
    assert "constant" not in (row.note or "")
    assert "retention" not in (row.note or "")


def test_answers_of_multiple_choice_are_kept(data: Path, subject: Subject) -> None:
    (boolq,) = subject.task(settings("boolq", data))
    assert {item["gold"] for item in boolq.items} <= {0, 1}
    (lambada,) = subject.task(settings("lambada_openai", data))
    assert all("gold" not in item for item in lambada.items)


def test_items_that_weigh_less_than_one_have_no_interval_of_shares() -> None:
    """Of two targets one has ten examples: the share is the mean of two, and Wilson's interval is of items that count alike."""
    values = [[1.0, 1.0], *([0.0, 0.1] for _ in range(10))]
    items = tuple({"id": i, "category": None, "cluster": str(i), "ss": value} for i, value in enumerate(values))
    facts = {"value": None, "aggregation": "preference_of_targets", "higher_is_better": None}
    result = TaskResult(task="made", version="1", items=items, metrics={"ss": facts}, hash="1")
    (row,) = task_rows(result, result, 0)
    assert row.before == pytest.approx(0.5)
    assert (row.before_low, row.after_low, row.effect_size) == (None, None, None)
