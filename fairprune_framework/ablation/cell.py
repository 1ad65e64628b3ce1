"""One cell of a grid: its scores, its plan, and the effect of masking the plan on judging contrasts and text."""

from __future__ import annotations

import json
import time
from typing import Any

from fairprune_framework.ablation.grid import Cell, described
from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator, measurable
from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of, scores_of


class PlanEvaluator:
    """Evaluates plans on the judging part of `select`, equal plans only once.

    Args:
        run: the search run: its `select` selects, its `heldout` (the judging part of the real `select`) judges.
        metric: the metric that ranks the cells, one of `names.IDEALS`.

    Raises:
        UserError: no contrast of the judging part has the metric.
    """

    def __init__(self, run: Run, metric: str = DIVERGENCE) -> None:
        contrasts = [contrast for contrast in run.prompts.aligned if contrast.split == "heldout"]
        contrasts = [contrast for contrast in contrasts if measurable(metric, contrast)]
        if not any(not contrast.control for contrast in contrasts):
            raise UserError(f"the judging part of select contains no contrast for {metric}")
        self.contrasts, self._limit = contrasts, run.recipe.max_perplexity_increase
        self.evaluator = MaskedEvaluator(
            run.loaded.model,
            run.loaded.architecture,
            contrasts,
            run.prompts.values,
            documents=run.calibration.judging,
            metric=metric,
            max_tokens=run.micro_batch_tokens,
            sentences=run.prompts.sentences,
            seed=run.recipe.seed,
        )
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def columns(self, plan: Plan) -> dict[str, Any]:
        """The measured columns of one cell."""
        operator = plan.operator if plan.operator in ("scale", "mean") else "silence"
        key = (operator, plan.factor, tuple(sorted(plan.factors.items())), tuple(sorted(plan.sites.items())))
        if key not in self._known:
            self._known[key] = self._measured(plan)
        return self._known[key]

    def _measured(self, plan: Plan) -> dict[str, Any]:
        after = self.evaluator.measure(plan.sites, plan.scaling)
        change = self.evaluator.change(after)
        control = self.evaluator.change(after, control=True)
        assert change is not None  # refused in __init__
        increase = self.evaluator.cost(after)
        by_category = {}
        for category in sorted({contrast.category for contrast in self.contrasts if not contrast.control}):
            of_category = self.evaluator.change(after, category=category, resamples=0)
            by_category[category] = None if of_category is None else of_category.change
        return {
            "guard_held": bool(increase <= self._limit),
            "bias_before": change.before,
            "bias_after": change.after,
            "bias_change": change.change,
            "ci_low": change.ci_low,
            "ci_high": change.ci_high,
            "p_value": change.p_value,
            "clusters": change.clusters,
            "control_change": None if control is None else control.change,
            "control_ci_low": None if control is None else control.ci_low,
            "control_ci_high": None if control is None else control.ci_high,
            "perplexity_change": increase,
            "by_category": by_category,
            "masking_ms": round(after.masking_ms, 3),
        }


class Scorekeeper:
    """Scores of the cells; neighbouring cells share a pair of scorers, so the last scores are kept."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._last: tuple[Any, Scores] | None = None

    def scores(self, cell: Cell) -> Scores:
        """Scores by the scorers of a cell on the shared audit."""
        key = (cell.recipe.bias, cell.recipe.importance, cell.recipe.seed)
        if self._last is None or self._last[0] != key:
            self._last = (key, scores_of(as_run(self.run, cell).selection))
        return self._last[1]


def as_run(run: Run, cell: Cell) -> Run:
    """The search run with the choices of a cell: the same folder, model, prompts and audit."""
    recipe = with_options(run.recipe, cell.choices)
    return run.with_recipe(recipe, loaded=run.loaded, prompts=run.prompts, calibration=run.calibration)


def evaluate_cell(run: Run, cell: Cell, keeper: Scorekeeper, evaluator: PlanEvaluator) -> dict[str, Any]:
    """All columns of one cell."""
    began = time.perf_counter()
    plan = plan_of(as_run(run, cell).selection, keeper.scores(cell))
    planned = time.perf_counter()
    columns = evaluator.columns(plan)
    return {
        "cell": cell.id,
        **_flat(cell),
        "control": cell.control,
        "units": plan.count,
        "reason": plan.reason,
        **columns,
        "factor": plan.factor,
        "seconds": round(time.perf_counter() - began, 3),
        "planning_seconds": round(planned - began, 3),
        "what": described(cell),
    }


def _flat(cell: Cell) -> dict[str, Any]:
    """The axes as columns: plugins with options as text."""
    return {
        name: value if isinstance(value, (str, int, type(None))) else json.dumps(value, sort_keys=True)
        for name, value in cell.choices.items()
    }
