"""Rows of the contrast metrics: `next-token-divergence` and `activation-difference`, by split, control, category and layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import pstdev
from typing import Any

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.draws import together
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure
from fairprune_framework.evaluation.metrics.names import ACTIVATION_DIFFERENCE, DIVERGENCE, LEGITIMATE_MARGIN, VALENCE_GAP
from fairprune_framework.evaluation.rows import ResultRow, RowKey, with_holm
from fairprune_framework.functional.paired_bootstrap import RESAMPLES, PairedChange, paired_change

UNITS = {DIVERGENCE: "nats", ACTIVATION_DIFFERENCE: "activation", VALENCE_GAP: "valence"}
LEGITIMATE = "legitimate"


def items_of(
    contrasts: Iterable[AlignedContrast],
    before: Sequence[ContrastMeasure],
    after: Sequence[ContrastMeasure] | None,
    sentences: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One mapping a contrast, in the order of the set. `sentences`: id -> the sentence that it stands in, where it is one."""
    first = {measure.id: measure for measure in before}
    second = {measure.id: measure for measure in after or ()}
    items = []
    for contrast in contrasts:
        a, b = first[contrast.id], second.get(contrast.id)
        items.append(
            {
                "id": contrast.id,
                "category": contrast.category,
                "template_id": contrast.template_id,
                "sentence": (sentences or {}).get(contrast.id),
                "split": contrast.split,
                "control": contrast.control,
                "role": contrast.role,
                "neutral_of": contrast.neutral_of,
                "equal_length": a.equal_length,
                f"{DIVERGENCE}_before": a.divergence,
                f"{DIVERGENCE}_after": b.divergence if b else None,
                f"{ACTIVATION_DIFFERENCE}_before": a.activation_difference,
                f"{ACTIVATION_DIFFERENCE}_after": b.activation_difference if b else None,
                f"{LEGITIMATE_MARGIN}_before": a.margin,
                f"{LEGITIMATE_MARGIN}_after": b.margin if b else None,
                f"{VALENCE_GAP}_before": _spread(a.valence),
                f"{VALENCE_GAP}_after": _spread(b.valence) if b else None,
                "valence_before": list(a.valence),
                "valence_after": list(b.valence) if b else None,
                "by_layer_before": list(a.by_layer),
                "by_layer_after": list(b.by_layer) if b else None,
            }
        )
    return items


def contrast_rows(items: Sequence[Mapping[str, Any]], layers: Sequence[int], seed: int) -> list[ResultRow]:
    """All rows of the contrast metrics. Intervals are over all layers, with Holm's p-values over the categories of a metric; rows of
    a single layer are point estimates.

    Legitimate contrasts have a margin, and no part in the other rows: what should differ is not to be levelled.
    """
    rows: list[ResultRow] = []
    for split, control, group in by_split([item for item in items if item["role"] != LEGITIMATE]):
        for metric, unit in UNITS.items():
            key = RowKey(metric=metric, unit=unit, split=split, control=control)
            rows.append(mean_row(key, group, metric, seed))
            rows += with_holm(
                [
                    mean_row(replace(key, category=category), _of_category(group, category), metric, seed)
                    for category in categories_of(group)
                ]
            )
        for category in [None, *categories_of(group)]:
            chosen = group if category is None else _of_category(group, category)
            for index, layer in enumerate(layers):
                key = RowKey(
                    metric=ACTIVATION_DIFFERENCE,
                    unit=UNITS[ACTIVATION_DIFFERENCE],
                    split=split,
                    control=control,
                    category=category,
                    layer=layer,
                )
                rows.append(mean_row(key, chosen, "by_layer", seed, index))
    for split, _, group in by_split([item for item in items if item["role"] == LEGITIMATE]):
        for category in [None, *categories_of(group)]:
            chosen = [item for item in group if category in (None, item["category"])]
            key = RowKey(metric=LEGITIMATE_MARGIN, unit="nats", split=split, category=category)
            rows.append(mean_row(key, chosen, LEGITIMATE_MARGIN, seed))
    return rows


def _spread(valence: Sequence[float]) -> float | None:
    """Standard deviation over the variants of a contrast."""
    return pstdev(valence) if valence else None


def by_split(items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str | None, bool, list[Mapping[str, Any]]]]:
    """The items in groups of one split, controls apart and last."""
    for split, control in sorted({(item["split"], item["control"]) for item in items}, key=lambda one: (one[1], str(one[0]))):
        yield split, control, [item for item in items if (item["split"], item["control"]) == (split, control)]


def categories_of(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their categories, sorted."""
    return sorted({item["category"] for item in items})


def _of_category(items: Sequence[Mapping[str, Any]], category: str) -> list[Mapping[str, Any]]:
    return [item for item in items if item["category"] == category]


def paired(items: Sequence[Mapping[str, Any]], metric: str, seed: int) -> PairedChange | None:
    """The paired change of a contrast metric over items; None without items or without an `after`."""
    if not items or items[0][f"{metric}_after"] is None:
        return None
    return paired_change(
        [item[f"{metric}_before"] for item in items],
        [item[f"{metric}_after"] for item in items],
        [item["category"] for item in items],
        [item["template_id"] for item in items],
        together=together(items),
        signed=metric == LEGITIMATE_MARGIN,
        seed=seed,
    )


def mean_row(key: RowKey, items: Sequence[Mapping[str, Any]], column: str, seed: int, index: int | None = None) -> ResultRow:
    """The row of a metric that is a mean over contrasts, templates and categories, and ideally 0 (a margin: large).

    Args:
        column: the items hold its values as `<column>_before` and `<column>_after`.
        index: where these are lists over layers, which entry; such a row is a point estimate.
    """

    def values(name: str) -> list[float]:
        return [item[name] if index is None else item[name][index] for item in items]

    alone = items[0][f"{column}_after"] is None
    before = values(f"{column}_before")
    change = paired_change(
        before,
        before if alone else values(f"{column}_after"),
        [item["category"] for item in items],
        [item["template_id"] for item in items],
        together=together(items),
        signed=column == LEGITIMATE_MARGIN,
        seed=seed,
        resamples=RESAMPLES if index is None and not alone else 0,
    )
    if alone:
        return ResultRow.alone(key, change.before, n=change.n, clusters=change.clusters)
    row = ResultRow.of_change(key, change)
    return row if index is None else replace(row, standard_error=None, detectable=None, note=None)
