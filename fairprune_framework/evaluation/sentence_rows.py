"""Rows of the sentence metrics: `sequence-gap` of every set, `stereotype-preference` where variants are named as stereotyping and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fairprune_framework.contrasts.schema import Contrast, stereotyping_variants
from fairprune_framework.evaluation.metrics.names import SEQUENCE_GAP, STEREOTYPE_PREFERENCE
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.results import Row, mean_row
from fairprune_framework.functional.bootstrap import change_of
from fairprune_framework.functional.hypothesis_tests import MIN_ITEMS, cohens_h, flips, holm, paired_effect_size, wilson

PREFERENCE_NOTE = "share of items; intervals over templates; p-value by McNemar's exact test on items"


def sentence_items(
    contrasts: Sequence[Contrast], before: Sequence[SentenceMeasure], after: Sequence[SentenceMeasure] | None
) -> list[dict[str, Any]]:
    """One mapping a measured contrast, in the order of `before`; the preference is null where no variant is a stereotype."""
    known = {contrast.id: contrast for contrast in contrasts}
    second: Mapping[str, SentenceMeasure] = {measured.id: measured for measured in after or ()}
    items = []
    for measured in before:
        contrast = known[measured.id]
        places = stereotyping_variants(contrast)
        item: dict[str, Any] = {
            "id": contrast.id,
            "category": contrast.category,
            "template_id": contrast.template_id,
            "split": contrast.split,
            "control": contrast.control,
        }
        for name, found in (("before", measured), ("after", second.get(measured.id))):
            item[f"log_probabilities_{name}"] = None if found is None else list(found.log_probabilities)
            item[f"{SEQUENCE_GAP}_{name}"] = None if found is None else found.gap
            item[f"{STEREOTYPE_PREFERENCE}_{name}"] = None if found is None or places is None else found.prefers(*places)
        items.append(item)
    return items


def sentence_rows(items: Sequence[Mapping[str, Any]], seed: int, prefix: str = "") -> list[Row]:
    """All rows, by split, control and category; `prefix` names the set where it is not the run's own (`winobias/`)."""
    rows: list[Row] = []
    for split, control in sorted({(item["split"], item["control"]) for item in items}, key=lambda k: (k[1], str(k[0]))):
        group = [item for item in items if (item["split"], item["control"]) == (split, control)]
        categories = sorted({item["category"] for item in group})
        for metric in (SEQUENCE_GAP, STEREOTYPE_PREFERENCE):
            usable = [item for item in group if item[f"{metric}_before"] is not None]
            if not usable:
                continue
            make = _gap_row if metric == SEQUENCE_GAP else _preference_row
            of_categories = []
            for category in categories:
                chosen = [item for item in usable if item["category"] == category]
                if chosen:
                    of_categories.append(make(chosen, prefix + metric, split, control, category, seed))
            rows.append(make(usable, prefix + metric, split, control, None, seed))
            rows += adjusted(of_categories)
    return rows


def adjusted(rows: Sequence[Row]) -> list[Row]:
    """The same rows with Holm's p-values over all of them that have one."""
    tested = [row for row in rows if row.p_value is not None]
    values = iter(holm([row.p_value for row in tested if row.p_value is not None]))
    return [row if row.p_value is None else replace(row, p_adjusted=next(values)) for row in rows]


def _gap_row(
    items: Sequence[Mapping[str, Any]], metric: str, split: str | None, control: bool, category: str | None, seed: int
) -> Row:
    row = mean_row(metric, "nats", split, control, category, None, items, SEQUENCE_GAP, None, seed)
    if row.after is None:
        return row
    effect = paired_effect_size(
        [item[f"{SEQUENCE_GAP}_before"] for item in items], [item[f"{SEQUENCE_GAP}_after"] for item in items]
    )
    return replace(row, effect_size=effect)


def _preference_row(
    items: Sequence[Mapping[str, Any]], metric: str, split: str | None, control: bool, category: str | None, seed: int
) -> Row:
    before = [bool(item[f"{STEREOTYPE_PREFERENCE}_before"]) for item in items]
    n, ideal = len(items), 0.5
    few = f"{n} items are too few for an interval; {MIN_ITEMS} are needed" if n < MIN_ITEMS else None
    low, high = (None, None) if few else wilson(sum(before), n)
    row = Row(
        metric=metric,
        split=split,
        control=control,
        category=category,
        layer=None,
        before=sum(before) / n,
        after=None,
        difference=None,
        change=None,
        ideal=ideal,
        unit="share of pairs",
        ci_low=None,
        ci_high=None,
        p_value=None,
        n=n,
        clusters=len({(item["category"], item["template_id"]) for item in items}),
        before_low=low,
        before_high=high,
        note=few,
    )
    if items[0][f"{STEREOTYPE_PREFERENCE}_after"] is None:
        return row
    after = [bool(item[f"{STEREOTYPE_PREFERENCE}_after"]) for item in items]
    found = change_of(
        [[yes, 1] for yes in before],
        [[yes, 1] for yes in after],
        [f"{item['category']}/{item['template_id']}" for item in items],
        ideal=ideal,
        seed=seed,
    )
    counted = flips(before, after)
    after_low, after_high = (None, None) if few else wilson(counted.after, n)
    change = found.change
    return replace(
        row,
        after=found.after,
        difference=found.difference.value,
        change=None if change is None else change.value,
        ci_low=None if change is None else change.low,
        ci_high=None if change is None else change.high,
        p_value=counted.p_value,
        standard_error=None if change is None else change.standard_error,
        difference_low=found.difference.low,
        difference_high=found.difference.high,
        after_low=after_low,
        after_high=after_high,
        detectable=counted.detectable,
        effect_size=cohens_h(found.before, found.after),
        only_before=counted.only_before,
        only_after=counted.only_after,
        note=few or (PREFERENCE_NOTE if change is not None else f"{PREFERENCE_NOTE}; before cannot be told from the ideal"),
    )
