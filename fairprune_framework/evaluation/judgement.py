"""From the items of an evaluation to what the verdict rests on: held-out contrasts by role, crossed where controls share templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.evaluation.conditions import GuardCost
from fairprune_framework.evaluation.contrast_rows import LEGITIMATE, categories_of, paired
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, LEGITIMATE_MARGIN
from fairprune_framework.evaluation.specificity_rows import specificity
from fairprune_framework.evaluation.verdict import VerdictInputs

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


def _cost(guard: Mapping[str, Any] | None) -> GuardCost | None:
    if guard is None:
        return None
    increase = guard["increase"]
    return GuardCost(
        increase=float("inf") if increase is None else increase, bound_high=guard.get("bound_high"), limit=guard["limit"]
    )


def _missing(legitimate: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return () if legitimate else ("legitimate contrasts in the held-out split",)
