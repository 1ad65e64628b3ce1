"""From the items of an evaluation to what the verdict rests on: held-out contrasts by role, crossed where controls share templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.evaluation.conditions import GuardCost
from fairprune_framework.evaluation.contrast_rows import LEGITIMATE, categories_of, paired
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, LEGITIMATE_MARGIN
from fairprune_framework.evaluation.verdict import VerdictInputs
from fairprune_framework.functional.difference_in_differences import (
    DifferenceInDifferences,
    PairedValues,
    difference_in_differences,
)

JUDGING = "heldout"
"""The split that the verdict rests on."""


def verdict_inputs(
    items: Sequence[Mapping[str, Any]],
    *,
    applied: bool,
    why_not: str | None,
    guard: Mapping[str, Any] | None,
    random_changes: Sequence[float],
    seed: int,
) -> VerdictInputs:
    """Everything that the verdict rests on.

    Args:
        items: of the evaluation, before and after.
        applied: the plan was carried out; otherwise `why_not` is the reason.
        guard: as `run.json` has it; None: there was no judging text.
        random_changes: of `random_sets`.
    """
    heldout = [item for item in items if item["split"] == JUDGING]
    demographic = [item for item in heldout if item["role"] == "demographic"]
    controls = [item for item in heldout if item["role"] == "control"]
    legitimate = [item for item in heldout if item["role"] == LEGITIMATE]
    by_category = {
        category: paired([item for item in demographic if item["category"] == category], DIVERGENCE, seed)
        for category in categories_of(demographic)
    }
    return VerdictInputs(
        applied=applied,
        why_not=why_not,
        divergence=paired(demographic, DIVERGENCE, seed),
        specificity=specificity(demographic, controls, seed),
        random_changes=tuple(random_changes),
        margin=paired(legitimate, LEGITIMATE_MARGIN, seed),
        guard=_cost(guard),
        categories={category: change for category, change in by_category.items() if change is not None},
        missing=_missing(legitimate),
    )


def specificity(
    demographic: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], seed: int
) -> DifferenceInDifferences | None:
    """The divergence of demographic contrasts against that of controls; None where one of the two was not measured twice."""
    if not demographic or not controls or demographic[0][f"{DIVERGENCE}_after"] is None:
        return None
    own = [f"{item['category']}/{item['template_id']}" for item in demographic]
    shared = [item["neutral_of"] for item in controls]
    return difference_in_differences(_values(demographic, own), _values(controls, shared), seed=seed)


def _values(items: Sequence[Mapping[str, Any]], templates: Sequence[object | None]) -> PairedValues:
    return PairedValues(
        before=[item[f"{DIVERGENCE}_before"] for item in items],
        after=[item[f"{DIVERGENCE}_after"] for item in items],
        categories=[item["category"] for item in items],
        clusters=[item["template_id"] for item in items],
        templates=list(templates),
    )


def _cost(guard: Mapping[str, Any] | None) -> GuardCost | None:
    if guard is None:
        return None
    increase = guard["increase"]
    return GuardCost(
        increase=float("inf") if increase is None else increase, bound_high=guard.get("bound_high"), limit=guard["limit"]
    )


def _missing(legitimate: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return () if legitimate else ("legitimate contrasts in the held-out split",)
