"""Demographic contrasts against controls: a ratio of macro means of a metric, and by how much it changed.

Source: this project, docs/method/verdict.md; `functional/difference_in_differences.py` for the statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.evaluation.draws import across_roles
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, VALENCE_GAP, to_controls
from fairprune_framework.evaluation.rows import ResultRow, RowKey
from fairprune_framework.functional.difference_in_differences import (
    DifferenceInDifferences,
    PairedValues,
    difference_in_differences,
)
from fairprune_framework.functional.paired_bootstrap import RESAMPLES

AGAINST_CONTROLS = (DIVERGENCE, VALENCE_GAP)
"""Contrast metrics that are read against the same on controls."""

Items = Sequence[Mapping[str, Any]]


def specificity(
    demographic: Items, controls: Items, seed: int, metric: str = DIVERGENCE, resamples: int = RESAMPLES
) -> DifferenceInDifferences | None:
    """A metric of demographic contrasts against that of controls; None where one of the two was not measured twice."""
    if not demographic or not controls or demographic[0][f"{metric}_after"] is None:
        return None
    return _compared(demographic, controls, metric, seed, "after", resamples)


def specificity_rows(items: Items, seed: int) -> list[ResultRow]:
    """A row a metric of `AGAINST_CONTROLS` and a split that holds both: demographic mean / control mean, before and after.

    `change` is the ratio of ratios - 1, with its interval; `n` counts the contrasts of both sides, `clusters` what was drawn, of
    the smaller side.
    """
    rows = []
    for split in sorted({item["split"] for item in items}, key=str):
        here = [item for item in items if item["split"] == split]
        demographic, controls = ([item for item in here if item["role"] == role] for role in ("demographic", "control"))
        if demographic and controls:
            rows += [_row(demographic, controls, metric, split, seed) for metric in AGAINST_CONTROLS]
    return [row for row in rows if row is not None]


def _row(demographic: Items, controls: Items, metric: str, split: str | None, seed: int) -> ResultRow | None:
    key = RowKey(metric=to_controls(metric), unit="ratio", split=split)
    alone = demographic[0][f"{metric}_after"] is None
    found = _compared(demographic, controls, metric, seed, "before" if alone else "after", 0 if alone else RESAMPLES)
    sides = (found.demographic, found.controls)
    if not sides[1].before or not sides[1].after:
        return None
    row = ResultRow.alone(
        key,
        sides[0].before / sides[1].before,
        n=sum(side.contrasts for side in sides),
        clusters=min(side.units for side in sides),
    )
    return row if alone else row.of_ratio(sides[0].after / sides[1].after, found.ratio_of_ratios)


def _compared(
    demographic: Items, controls: Items, metric: str, seed: int, second: str, resamples: int
) -> DifferenceInDifferences:
    labels = across_roles([*demographic, *controls])
    own = [label or f"{item['category']}/{item['template_id']}" for label, item in zip(labels, demographic, strict=False)]
    shared = [label or item["neutral_of"] for label, item in zip(labels[len(demographic) :], controls, strict=True)]
    return difference_in_differences(
        _values(demographic, own, metric, second), _values(controls, shared, metric, second), seed=seed, resamples=resamples
    )


def _values(items: Items, templates: Sequence[object | None], metric: str, second: str) -> PairedValues:
    return PairedValues(
        before=[item[f"{metric}_before"] for item in items],
        after=[item[f"{metric}_{second}"] for item in items],
        categories=[item["category"] for item in items],
        clusters=[item["template_id"] for item in items],
        templates=list(templates),
    )
