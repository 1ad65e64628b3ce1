"""Rows of sentence metrics by hand: shares, flips, and what has no interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows


def pairs(names: tuple[str, str], n: int = 40) -> list[Contrast]:
    variants = tuple(Variant(attribute=name, text=f"text {name}") for name in names)
    return [Contrast(id=str(i), category="ab"[i % 2], template_id=str(i), variants=variants) for i in range(n)]


def measures(wins: int, n: int = 40) -> list[SentenceMeasure]:
    return [SentenceMeasure(id=str(i), log_probabilities=(-1.0, -1.5 if i < wins else -0.5)) for i in range(n)]


def test_rows_of_a_stereotype_set() -> None:
    contrasts = pairs(("more", "less"))
    names = ("x/sequence-gap", "x/stereotype-preference", "x/length-matched-preference")
    rows = sentence_rows(sentence_items(contrasts, measures(34), measures(22)), seed=0, prefix="x/")
    assert [(row.metric, row.category) for row in rows] == [
        (metric, category) for metric in names for category in (None, "a", "b")
    ]
    share = rows[3]
    assert (share.before, share.after, share.ideal, share.n) == (34 / 40, 22 / 40, 0.5, 40)
    assert share.change == pytest.approx((0.05 - 0.35) / 0.35)
    assert (share.only_before, share.only_after) == (12, 0)
    assert share.p_value == pytest.approx(2 * 0.5**12)
    assert share.ci_high is not None
    assert share.ci_high < 0
    assert [row.p_adjusted for row in rows[4:6]] == [pytest.approx(2 * rows[4].p_value), pytest.approx(2 * rows[5].p_value)]


def test_rows_of_one_model_and_of_two_that_are_equal() -> None:
    contrasts = pairs(("more", "less"))
    alone = sentence_rows(sentence_items(contrasts, measures(34), None), seed=0)
    assert {row.after for row in alone} == {None}
    assert alone[3].before_low is not None
    same = sentence_rows(sentence_items(contrasts, measures(34), measures(34)), seed=0)
    assert {(row.difference, row.change, row.ci_low, row.ci_high, row.p_value) for row in same} == {(0.0, 0.0, 0.0, 0.0, 1.0)}


def test_few_items_have_no_interval() -> None:
    rows = sentence_rows(sentence_items(pairs(("more", "less"), 5), measures(4, 5), measures(1, 5)), seed=0)
    share = next(row for row in rows if row.metric == "stereotype-preference" and row.category is None)
    assert share.ci_low is share.after_low is None
    assert share.note is not None
    assert "too few" in share.note


def test_the_gap_is_a_mean_over_templates_with_its_effect_size() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.gamma(2, 1, (2, 40))
    contrasts = pairs(("a", "b"))
    measured = [
        [SentenceMeasure(id=str(i), log_probabilities=(-1.0, -1.0 - gap)) for i, gap in enumerate(gaps)]
        for gaps in (before, after)
    ]
    (row, first, second) = sentence_rows(sentence_items(contrasts, *measured), seed=0)
    assert (row.before, row.after) == pytest.approx((before.mean(), after.mean()))
    t, _ = stats.ttest_rel(after, before)
    assert row.effect_size == pytest.approx(t / np.sqrt(40))
    assert first.before == pytest.approx(before[::2].mean())
    assert second.after == pytest.approx(after[1::2].mean())


def test_splits_and_controls_are_apart() -> None:
    contrasts = [
        Contrast(**{**vars(one), "split": ("select", "heldout")[i % 2], "control": i >= 20})
        for i, one in enumerate(pairs(("more", "less")))
    ]
    rows = sentence_rows(sentence_items(contrasts, measures(34), measures(22)), seed=0)
    overall = [row for row in rows if row.category is None and row.metric == "stereotype-preference"]
    assert [(row.split, row.control, row.n) for row in overall] == [
        ("heldout", False, 10),
        ("select", False, 10),
        ("heldout", True, 10),
        ("select", True, 10),
    ]


def scored(*shared: tuple[float, float], tokens: int = 4, **facts: bool) -> list[SentenceMeasure]:
    return [
        SentenceMeasure(id=str(i), log_probabilities=(-9.0, -8.0), shared=pair, shared_tokens=tokens, **facts)
        for i, pair in enumerate(shared)
    ]


def test_pairs_that_cannot_be_scored_are_left_out_and_counted() -> None:
    contrasts = pairs(("more", "less"))
    measured = scored(*[(-1.0, -2.0 if i % 4 else -0.5) for i in range(40)])
    cut = [replace(one, whole=i >= 10, equal_length=i >= 20, shared_tokens=4 * (i >= 5)) for i, one in enumerate(measured)]
    rows = {row.metric: row for row in sentence_rows(sentence_items(contrasts, cut, cut), seed=0) if row.category is None}
    assert {name: row.n for name, row in rows.items()} == {
        "sequence-gap": 40,
        "shared-token-perplexity": 35,
        "shared-token-preference": 35,
        "stereotype-preference": 30,
        "length-matched-preference": 20,
    }
    assert rows["shared-token-preference"].before == pytest.approx(sum(i % 4 > 0 for i in range(5, 40)) / 35)
    assert rows["stereotype-preference"].before == 0.0
    assert "5 of 40 pairs left out" in str(rows["shared-token-preference"].note)
    assert "10 of 40 pairs left out" in str(rows["stereotype-preference"].note)
    assert "left out" not in str(rows["sequence-gap"].note)


def test_the_perplexity_of_shared_tokens_is_pooled_over_both_variants() -> None:
    rng = np.random.default_rng(1)
    before, after = (rng.normal(-8, 2, (40, 2)), rng.normal(-9, 2, (40, 2)))
    items = sentence_items(pairs(("a", "b")), scored(*map(tuple, before.tolist())), scored(*map(tuple, after.tolist())))
    row = next(r for r in sentence_rows(items, seed=0) if r.metric == "shared-token-perplexity" and r.category is None)
    first, second = (np.exp(-values.sum() / (40 * 2 * 4)) for values in (before, after))
    assert (row.before, row.after, row.change) == pytest.approx((first, second, second / first - 1))
    assert row.ci_low is not None
    assert row.ci_low < row.change < row.ci_high  # type: ignore[operator]
