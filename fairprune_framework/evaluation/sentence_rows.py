"""Rows of the sentence metrics: `sequence-gap` of every set, `stereotype-preference` where variants are named as stereotyping and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fairprune_framework.contrasts.schema import Contrast, stereotyping_variants
from fairprune_framework.evaluation.contrast_rows import LEGITIMATE, by_split, categories_of, mean_row
from fairprune_framework.evaluation.metrics.names import SEQUENCE_GAP, STEREOTYPE_PREFERENCE
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.rows import ResultRow, RowKey, with_holm
from fairprune_framework.functional.bootstrap import change_of
from fairprune_framework.functional.hypothesis_tests import MIN_ITEMS, cohens_h, flips, paired_effect_size, wilson

PREFERENCE_NOTE = (
    "share of items; intervals over templates; "
    "p-value: McNemar's exact test of a change of the share itself, not of its distance from 50 %"
)


def sentence_items(
    contrasts: Sequence[Contrast], before: Sequence[SentenceMeasure], after: Sequence[SentenceMeasure] | None
) -> list[dict[str, Any]]:
    """One mapping a measured contrast, in the order of `before`; the preference is null where no variant is a stereotype."""
    known = {contrast.id: contrast for contrast in contrasts}
    second: Mapping[str, SentenceMeasure] = {measured.id: measured for measured in after or ()}
    items = []
    for measured in before:
        contrast = known[measured.id]
        pair = stereotyping_variants(contrast)
        item: dict[str, Any] = {
            "id": contrast.id,
            "category": contrast.category,
            "template_id": contrast.template_id,
            "split": contrast.split,
            "control": contrast.control,
            "role": contrast.role,
        }
        for when, one in (("before", measured), ("after", second.get(measured.id))):
            item[f"log_probabilities_{when}"] = None if one is None else list(one.log_probabilities)
            item[f"{SEQUENCE_GAP}_{when}"] = None if one is None else one.gap
            item[f"{STEREOTYPE_PREFERENCE}_{when}"] = None if one is None or pair is None else one.prefers(*pair)
        items.append(item)
    return items


def sentence_rows(items: Sequence[Mapping[str, Any]], seed: int, prefix: str = "") -> list[ResultRow]:
    """All rows, by split, control and category; `prefix` names the set where it is not the run's own (`winobias/`)."""
    rows: list[ResultRow] = []
    for split, control, group in by_split([item for item in items if item["role"] != LEGITIMATE]):
        for metric, unit, ideal, make in (
            (SEQUENCE_GAP, "nats", 0.0, _gap_row),
            (STEREOTYPE_PREFERENCE, "share of pairs", 0.5, _preference_row),
        ):
            usable = [item for item in group if item[f"{metric}_before"] is not None]
            if not usable:
                continue
            key = RowKey(metric=prefix + metric, unit=unit, ideal=ideal, split=split, control=control)
            rows.append(make(key, usable, seed))
            rows += with_holm(
                [
                    make(replace(key, category=category), [item for item in usable if item["category"] == category], seed)
                    for category in categories_of(usable)
                ]
            )
    return rows


def _gap_row(key: RowKey, items: Sequence[Mapping[str, Any]], seed: int) -> ResultRow:
    row = mean_row(key, items, SEQUENCE_GAP, seed)
    if row.after is None:
        return row
    before, after = ([item[f"{SEQUENCE_GAP}_{when}"] for item in items] for when in ("before", "after"))
    return replace(row, effect_size=paired_effect_size(before, after))


def _preference_row(key: RowKey, items: Sequence[Mapping[str, Any]], seed: int) -> ResultRow:
    before = [bool(item[f"{STEREOTYPE_PREFERENCE}_before"]) for item in items]
    clusters = [f"{item['category']}/{item['template_id']}" for item in items]
    n = len(items)
    few = f"{n} items are too few for an interval; {MIN_ITEMS} are needed" if n < MIN_ITEMS else None
    low, high = (None, None) if few else wilson(sum(before), n)
    if items[0][f"{STEREOTYPE_PREFERENCE}_after"] is None:
        row = ResultRow.alone(key, sum(before) / n, n=n, clusters=len(set(clusters)), note=few)
        return replace(row, before_low=low, before_high=high)
    after = [bool(item[f"{STEREOTYPE_PREFERENCE}_after"]) for item in items]
    shares = change_of([[yes, 1] for yes in before], [[yes, 1] for yes in after], clusters, ideal=key.ideal, seed=seed)
    counted = flips(before, after)
    after_low, after_high = (None, None) if few else wilson(counted.after, n)
    told = PREFERENCE_NOTE if shares.change is not None else f"{PREFERENCE_NOTE}; before cannot be told from the ideal"
    return replace(
        ResultRow.of_change(key, shares),
        before_low=low,
        before_high=high,
        after_low=after_low,
        after_high=after_high,
        p_value=counted.p_value,
        detectable=counted.detectable,
        effect_size=cohens_h(shares.before, shares.after),
        only_before=counted.only_before,
        only_after=counted.only_after,
        note=few or told,
    )
