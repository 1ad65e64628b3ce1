"""Metrics derived from lm-eval's items, counted by hand; and scores that carry no claim where a model guesses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairprune_framework.evaluation.tasks.derived import with_derived
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.evaluation.tasks.rows import task_rows

RNG = np.random.default_rng(3)


def bbq(accuracy: float, biased: float = 0.6, n: int = 240) -> TaskResult:
    """Half of the contexts disambiguated; of the ambiguous answers 80 % are not "unknown", `biased` of them biased."""
    items = []
    for i in range(n):
        clear = i % 2
        right = int(RNG.random() < accuracy) if clear else int(RNG.random() < 0.2)
        answered = 1 if clear else 1 - right
        lean = int(answered and RNG.random() < biased)
        value = [right, lean, answered, clear]
        item: dict[str, Any] = {"id": i, "category": "ab"[i // (n // 2)], "cluster": str(i // 2), "acc": right}
        item |= {f"accuracy_{kind}": [right, clear] for kind in ("amb", "disamb")}
        items.append(item | {f"{kind}_bias_score": value for kind in ("amb", "disamb")})
    names = {
        "acc": ("mean", True),
        "accuracy_amb": ("agg_accuracy_amb", True),
        "accuracy_disamb": ("agg_accuracy_disamb", True),
        "amb_bias_score": ("agg_amb_bias_scores", False),
        "disamb_bias_score": ("agg_disamb_bias_scores", False),
    }
    metrics = {k: {"value": None, "aggregation": a, "higher_is_better": better} for k, (a, better) in names.items()}
    return TaskResult(task="bbq", version="1", items=tuple(items), metrics=metrics, hash="1")


def test_biased_less_counter_biased_by_hand() -> None:
    before, after = bbq(0.8, 0.7), bbq(0.8, 0.5)
    rows = {(row.metric, row.category): row for row in task_rows(before, after, 0)}
    for kind, clear in (("amb", 0), ("disamb", 1)):
        row = rows[f"bbq/{kind}_diff_bias", None]
        for result, found in ((before, row.before), (after, row.after)):
            values = np.array([v for item in result.items if (v := item["amb_bias_score"])[3] == clear])
            counter = values[:, 2] - values[:, 1]
            assert found == pytest.approx((values[:, 1] - counter).sum() / len(values))
        assert (row.ideal, row.n, row.clusters) == (0.0, 120, 120)
        assert row.difference_low is not None
        assert row.retention is None
        flips = [(a["amb_bias_score"], b["amb_bias_score"]) for a, b in zip(before.items, after.items, strict=True)]
        assert row.only_before == sum(a[1] > b[1] for a, b in flips if a[3] == clear)


@pytest.mark.parametrize(("accuracy", "claimed"), [(0.9, True), (0.5, False), (0.33, False)])
def test_scores_of_a_model_that_guesses_where_the_text_says_it_carry_no_claim(accuracy: float, claimed: bool) -> None:
    result = bbq(accuracy)
    scores = [row for row in task_rows(result, bbq(accuracy), 0) if "bias" in row.metric]
    assert len(scores) == 12  # four scores, over all and by category
    for row in scores:
        assert row.after is not None
        assert (row.p_value is not None) is claimed
        assert (row.difference_low is not None) is claimed
        assert ("no claim: accuracy_answered of the model before is" in str(row.note)) is not claimed


def test_who_never_says_unknown_beats_a_third_and_still_guesses() -> None:
    result = bbq(0.48, n=2000)
    rows = {row.metric: row for row in task_rows(result, result, 0) if row.category is None}
    assert rows["bbq/accuracy_disamb"].before_low > 1 / 3  # type: ignore[operator]
    assert rows["bbq/accuracy_answered"].n == 1000
    assert rows["bbq/amb_bias_score"].p_value is None


def test_by_category_each_rests_on_its_own_accuracy() -> None:
    good, bad = bbq(0.95), bbq(0.45)
    items = (*good.items[:120], *bad.items[120:])
    mixed = TaskResult(**{**vars(good), "items": items})
    told = {row.category: row.p_value is not None for row in task_rows(mixed, mixed, 0) if row.metric == "bbq/amb_diff_bias"}
    assert told == {None: True, "a": True, "b": False}


def test_copies_of_a_few_questions_are_no_proof_that_a_model_beats_chance() -> None:
    """The same items, each of its own, or as 20 copies of what a few questions say: the accuracy is the same, the evidence is not."""
    few = bbq(0.7, n=40)
    for copies, claimed in ((False, True), (True, False)):
        items = tuple(
            {**item, "cluster": item["cluster"] if copies else f"{item['cluster']}/{number}"}
            for number in range(20)
            for item in few.items
        )
        many = TaskResult(**{**vars(few), "items": items})
        row = next(r for r in task_rows(many, many, 0) if (r.metric, r.category) == ("bbq/amb_diff_bias", None))
        assert (row.p_value is not None) is claimed
        accuracy = next(r for r in task_rows(many, many, 0) if (r.metric, r.category) == ("bbq/accuracy_answered", None))
        assert (accuracy.before_low > 0.5) is claimed  # type: ignore[operator]


def winogender(right: dict[str, list[int]]) -> TaskResult:
    items = [
        {"id": 3 * i + j, "category": gender, "cluster": f"{i // 2}/x", "gold": i % 2, "acc": right[gender][i]}
        for i in range(len(right["male"]))
        for j, gender in enumerate(("male", "female", "neutral"))
    ]
    metrics = {"acc": {"value": None, "aggregation": "mean", "higher_is_better": True}}
    return TaskResult(task="winogender_all", version="1", items=tuple(items), metrics=metrics, hash="1")


def test_sentences_of_winogender_by_hand() -> None:
    male, female, neutral = ((RNG.random((3, 60)) < np.array([[0.95], [0.7], [0.8]])).astype(int)).tolist()
    result = winogender({"male": male, "female": female, "neutral": neutral})
    rows = {row.metric: row for row in task_rows(result, result, 0) if row.category is None}
    gap, both = rows["winogender_all/male_minus_female"], rows["winogender_all/both_right"]
    assert gap.before == pytest.approx(np.mean(male) - np.mean(female))
    assert both.before == pytest.approx(np.mean(np.array(male) * np.array(female)))
    assert (gap.n, gap.clusters, gap.ideal) == (60, 30, 0.0)
    assert {row.category for row in task_rows(result, None, 0) if "both_right" in row.metric} == {None}


def test_a_sentence_without_its_counterpart_takes_no_part() -> None:
    result = winogender({"male": [1] * 20, "female": [1] * 20, "neutral": [1] * 20})
    alone = TaskResult(**{**vars(result), "items": tuple(item for item in result.items if item["id"] != 1)})
    (row,) = [row for row in task_rows(alone, None, 0) if row.metric.endswith("both_right")]
    assert row.n == 19


def test_other_tasks_are_left_as_they_are() -> None:
    result = TaskResult(task="boolq", version="1", items=(), metrics={}, hash="1")
    assert with_derived(result) is result
