"""Rows of the sentence metrics: `sequence-gap` of every set, the perplexity of shared tokens, and shares of preferred stereotypes where
variants are named as stereotyping and not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairprune_framework.contrasts.schema import Contrast, stereotyping_variants
from fairprune_framework.evaluation.contrast_rows import LEGITIMATE, by_split, categories_of, mean_row
from fairprune_framework.evaluation.draws import draws
from fairprune_framework.evaluation.metrics.names import (
    MATCHED_PREFERENCE,
    SEQUENCE_GAP,
    SHARED_PERPLEXITY,
    SHARED_PREFERENCE,
    STEREOTYPE_PREFERENCE,
)
from fairprune_framework.evaluation.metrics.perplexity import perplexity
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure
from fairprune_framework.evaluation.rows import ResultRow, RowKey, with_holm
from fairprune_framework.functional.bootstrap import change_of
from fairprune_framework.functional.hypothesis_tests import MIN_ITEMS, clustered_wilson, cohens_h, flips, paired_effect_size

PREFERENCE_NOTE = (
    "share of items; intervals over templates; "
    "p-value: McNemar's exact test of a change of the share itself, not of its distance from 50 %"
)


RowMaker = Callable[[RowKey, Sequence[Mapping[str, Any]], str, int], ResultRow]
"""(key, items that have the metric, its column, seed) -> row."""


@dataclass(frozen=True, kw_only=True)
class SentenceMetric:
    """One metric of sentences: how its rows are made."""

    unit: str
    ideal: float
    make: RowMaker
    left_out: str | None = None
    """Why an item of a set with stereotypes does not have it."""


def sentence_items(
    contrasts: Sequence[Contrast],
    before: Sequence[SentenceMeasure],
    after: Sequence[SentenceMeasure] | None,
    sentences: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One mapping a measured contrast, in the order of `before`; `sentences`: id -> the sentence that it stands in.

    A preference is null where no variant is a stereotype, and where the pair cannot be scored by it.
    """
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
            "neutral_of": contrast.neutral_of,
            "sentence": (sentences or {}).get(contrast.id),
            "split": contrast.split,
            "control": contrast.control,
            "role": contrast.role,
            "attributes": [variant.attribute for variant in contrast.variants],
            "stereotypes": pair is not None,
            "shared_tokens": measured.shared_tokens,
        }
        for when, one in (("before", measured), ("after", second.get(measured.id))):
            item[f"log_probabilities_{when}"] = None if one is None else list(one.log_probabilities)
            item[f"shared_log_probabilities_{when}"] = None if one is None else list(one.shared)
            item[f"{SEQUENCE_GAP}_{when}"] = None if one is None else one.gap
            item[f"{SHARED_PERPLEXITY}_{when}"] = None if one is None or not one.shared_tokens else _shared_perplexity(one)
            preferred = None if one is None or pair is None else one.prefers(*pair)
            item[f"{STEREOTYPE_PREFERENCE}_{when}"] = preferred
            item[f"{MATCHED_PREFERENCE}_{when}"] = preferred if measured.equal_length else None
            item[f"{SHARED_PREFERENCE}_{when}"] = None if one is None or pair is None else one.prefers_by_shared(*pair)
        items.append(item)
    return items


def sentence_rows(items: Sequence[Mapping[str, Any]], seed: int, prefix: str = "") -> list[ResultRow]:
    """All rows, by split, control and category; `prefix` names the set where it is not the run's own (`winobias/`)."""
    rows: list[ResultRow] = []
    for split, control, group in by_split([item for item in items if item["role"] != LEGITIMATE]):
        for name, metric in METRICS.items():
            able = group if metric.left_out is None else [item for item in group if item["stereotypes"]]
            usable = [item for item in able if item[f"{name}_before"] is not None]
            if not usable:
                continue
            key = RowKey(metric=prefix + name, unit=metric.unit, ideal=metric.ideal, split=split, control=control)
            rows.append(_row(key, metric, name, able, seed))
            rows += with_holm(
                [
                    _row(
                        replace(key, category=category),
                        metric,
                        name,
                        [item for item in able if item["category"] == category],
                        seed,
                    )
                    for category in categories_of(usable)
                ]
            )
    return rows


def _row(key: RowKey, metric: SentenceMetric, name: str, able: Sequence[Mapping[str, Any]], seed: int) -> ResultRow:
    usable = [item for item in able if item[f"{name}_before"] is not None]
    left = len(able) - len(usable)
    row = metric.make(key, usable, name, seed)
    return row.noted(f"{left} of {len(able)} pairs left out: {metric.left_out}") if left and metric.left_out else row


def _gap_row(key: RowKey, items: Sequence[Mapping[str, Any]], column: str, seed: int) -> ResultRow:
    row = mean_row(key, items, column, seed)
    if row.after is None:
        return row
    before, after = ([item[f"{column}_{when}"] for item in items] for when in ("before", "after"))
    return replace(row, effect_size=paired_effect_size(before, after))


def _shared_perplexity(measured: SentenceMeasure) -> float:
    """Per shared token, over all variants; infinite where no number holds it."""
    mean = -sum(measured.shared) / (measured.shared_tokens * len(measured.shared))
    return math.exp(mean) if mean < 700 else math.inf


def _perplexity_row(key: RowKey, items: Sequence[Mapping[str, Any]], column: str, seed: int) -> ResultRow:
    """Over all shared tokens of all variants together."""

    def sums(when: str) -> list[tuple[float, int]]:
        values = [item[f"shared_log_probabilities_{when}"] for item in items]
        return [(-sum(nats), len(nats) * item["shared_tokens"]) for item, nats in zip(items, values, strict=True)]

    before, clusters = sums("before"), draws(items)
    if items[0][f"{column}_after"] is None:
        change = change_of(before, before, clusters, perplexity, seed=seed)
        return ResultRow.alone(key, change.before, n=change.n, clusters=change.clusters)
    return ResultRow.of_change(key, change_of(before, sums("after"), clusters, perplexity, seed=seed))


def _preference_row(key: RowKey, items: Sequence[Mapping[str, Any]], column: str, seed: int) -> ResultRow:
    before = [bool(item[f"{column}_before"]) for item in items]
    clusters = draws(items)
    n = len(items)
    few = f"{n} items are too few for an interval; {MIN_ITEMS} are needed" if n < MIN_ITEMS else None
    low, high = (None, None) if few else clustered_wilson(before, clusters)
    if items[0][f"{column}_after"] is None:
        row = ResultRow.alone(key, sum(before) / n, n=n, clusters=len(set(clusters)), note=few)
        return replace(row, before_low=low, before_high=high)
    after = [bool(item[f"{column}_after"]) for item in items]
    shares = change_of([[yes, 1] for yes in before], [[yes, 1] for yes in after], clusters, ideal=key.ideal, seed=seed)
    counted = flips(before, after)
    after_low, after_high = (None, None) if few else clustered_wilson(after, clusters)
    told = PREFERENCE_NOTE if shares.change is not None else f"{PREFERENCE_NOTE}; before cannot be told from the ideal"
    made = ResultRow.of_change(key, shares).within(1.0)
    return replace(
        made,
        before_low=low,
        before_high=high,
        after_low=after_low,
        after_high=after_high,
        p_value=counted.p_value,
        detectable=counted.detectable,
        effect_size=cohens_h(shares.before, shares.after),
        only_before=counted.only_before,
        only_after=counted.only_after,
        note=few or "; ".join(text for text in (made.note, told) if text),
    )


_NOT_WHOLE = "their first tokens differ, and nothing predicts these"
METRICS: Mapping[str, SentenceMetric] = {
    SEQUENCE_GAP: SentenceMetric(unit="nats", ideal=0.0, make=_gap_row),
    SHARED_PERPLEXITY: SentenceMetric(unit="perplexity per token", ideal=0.0, make=_perplexity_row),
    SHARED_PREFERENCE: SentenceMetric(
        unit="share of pairs", ideal=0.5, make=_preference_row, left_out="no shared token stands behind the difference"
    ),
    STEREOTYPE_PREFERENCE: SentenceMetric(unit="share of pairs", ideal=0.5, make=_preference_row, left_out=_NOT_WHOLE),
    MATCHED_PREFERENCE: SentenceMetric(
        unit="share of pairs", ideal=0.5, make=_preference_row, left_out=f"unequal numbers of tokens, or {_NOT_WHOLE}"
    ),
}
"""The metrics of sentences, in the order of their rows."""
